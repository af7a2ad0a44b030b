import pytest
import torch

from attacks.matching.snapshots import Snapshots, looked_on_by, looks_due


def look_at_all(snapshots: Snapshots, steps: int) -> None:
    for step in range(steps + 1):
        points = torch.full((2, 4), 1.0 / (step + 1))
        snapshots.look(step, points, torch.tensor([5.0, 4.0 / (step + 1)]))


def test_a_dozen_looks_from_the_start_to_the_end() -> None:
    snapshots = Snapshots(lambda point: point.view(1, 4), steps=400, input_range=(0.0, 1.0))

    look_at_all(snapshots, 400)
    taken = snapshots.end(400, torch.zeros(2, 4), torch.zeros(2))

    assert len(taken) == 12
    assert [one.step for one in taken] == sorted({one.step for one in taken})
    assert (taken[0].step, taken[-1].step) == (0, 400)


def test_an_early_end_is_kept_too() -> None:
    snapshots = Snapshots(lambda point: point.view(1, 4), steps=400, input_range=(0.0, 1.0))

    look_at_all(snapshots, 30)
    taken = snapshots.end(31, torch.full((1, 4), 0.25), torch.tensor([1e-3]))

    assert taken[-1].step == 31
    assert taken[-1].inputs.eq(0.25).all()


def test_they_show_the_best_so_far_inside_the_range() -> None:
    snapshots = Snapshots(lambda point: point.view(1, 2), steps=3, input_range=(0.0, 1.0))

    snapshots.look(0, torch.tensor([[0.5, 7.0], [0.1, 0.1]]), torch.tensor([1.0, torch.nan]))
    taken = snapshots.end(1, torch.tensor([[0.9, 0.9]]), torch.tensor([2.0]))

    assert taken[0].inputs.tolist() == [[0.5, 1.0]]
    assert taken[1].inputs.tolist() == [[0.5, 1.0]]
    assert [one.matching_loss for one in taken] == [1.0, 1.0]


def test_an_onlooker_is_told_each_look_and_where_the_search_stands_between_them(
    monkeypatch: pytest.MonkeyPatch, rng: torch.Generator
) -> None:
    clock = iter(range(1000))
    monkeypatch.setattr("attacks.matching.snapshots.time.monotonic", lambda: float(next(clock)))
    told: list[tuple[int, torch.Generator | None]] = []
    snapshots = Snapshots(lambda point: point, steps=100, input_range=(0.0, 1.0), rng=rng)

    with looked_on_by(lambda guess, whose: told.append((guess.step, whose))):
        for step in range(101):
            snapshots.look(step, torch.full((1, 2), 0.5), torch.tensor([1.0 / (1 + step)]))

    assert [step for step, _ in told] == list(range(101))  # a second passes at every step
    assert all(whose is rng for _, whose in told)
    assert [one.step for one in snapshots.taken] == sorted(looks_due(100))


def test_nobody_is_told_once_the_onlooker_has_left_or_of_looks_that_are_gathered_later() -> None:
    told: list[int] = []
    later = Snapshots(lambda point: point, steps=0, input_range=(0.0, 1.0), shown=False)
    alone = Snapshots(lambda point: point, steps=0, input_range=(0.0, 1.0))

    with looked_on_by(lambda guess, _: told.append(guess.step)):
        later.keep(0, torch.zeros(1, 2), torch.zeros(1))
    alone.keep(0, torch.zeros(1, 2), torch.zeros(1))

    assert told == []
