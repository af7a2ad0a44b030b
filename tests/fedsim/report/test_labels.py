"""Where names of marks go."""

import itertools

import numpy as np

from fedsim.report.labels import (
    Box,
    beside,
    level_name,
    line_boxes,
    mark_at,
    places_of,
    rows_of,
    width_of,
)

ROOM = 500.0


def test_a_name_is_right_of_its_mark_or_left_of_it_at_the_edge() -> None:
    assert beside(100, 50, "a name", ROOM).left > 100
    assert beside(490, 50, "a name", ROOM).right < 490


def test_marks_that_would_meet_with_their_names_get_rows_of_their_own() -> None:
    assert rows_of([10, 300, 40], ["a name", "b name", "c name"], ROOM) == [0, 0, 1]
    assert sorted(rows_of([10] * 5, ["same"] * 5, ROOM)) == [0, 1, 2, 3, 4]
    assert rows_of([], [], ROOM) == []


def test_names_meet_neither_marks_nor_each_other() -> None:
    points = [(100.0, 100.0), (100.0, 106.0), (118.0, 96.0), (490.0, 20.0)]
    names = [("first name", "1"), ("second name", "2"), ("third name", "3"), ("fourth", "4")]

    places = places_of(points, names, ROOM, [])

    boxes = [box for _, box in places]
    for one, other in itertools.combinations([*boxes, *(mark_at(*at) for at in points)], 2):
        marks = one not in boxes and other not in boxes
        assert marks or not one.meets(other)
    assert all(box.right <= ROOM for box in boxes)


def test_a_name_without_room_is_the_short_one() -> None:
    crowd = [(100.0 + 2 * step, 100.0 + 3 * step) for step in range(30)]
    names = [("a rather long name", str(step)) for step in range(30)]

    said = [name for name, _ in places_of(crowd, names, ROOM, [])]

    assert {"a rather long name"} < set(said)
    assert width_of("12") < width_of("a rather long name")


def test_names_of_levels_meet_neither_each_other_nor_a_line_there() -> None:
    line = line_boxes(np.array([300.0, 500.0]), np.array([30.0, 30.0]), ROOM)
    names: list[Box] = []

    for level in (24.0, 20.0, 18.0):
        names.append(
            level_name(
                level, "data mean", names=names, others=line, room=(ROOM, 100.0), leftmost=False
            )
        )

    assert not any(one.meets(other) for one, other in itertools.combinations(names, 2))
    assert not any(name.meets(piece) for name in names for piece in line)
    assert all(name.low >= 0 and name.left >= 0 and name.right <= ROOM for name in names)


def test_a_line_takes_no_room_where_a_value_is_missing() -> None:
    xs, ys = np.array([0.0, 100.0, 200.0, 300.0]), np.array([1.0, 1.0, np.nan, 1.0])

    assert {box.right <= 100.0 for box in line_boxes(xs, ys, ROOM)} == {True}
