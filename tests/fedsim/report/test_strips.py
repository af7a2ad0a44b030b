"""Dots per image, a row per setting."""

import pytest

from fedsim.report.charts import svg
from fedsim.report.palette import LIGHT
from fedsim.report.strips import Strip, draw

ROWS = [
    Strip(label="server, curious server", dots=[(60.0, "heard"), (33.0, "heard")], missed=0),
    Strip(label="ring, one neighbour", dots=[(25.0, "estimated")], missed=17),
]


@pytest.mark.parametrize("width", [960, 420])
def test_every_setting_has_its_name_its_dots_and_what_it_missed(width: int) -> None:
    titles = ("PSNR, dB", "not got")
    figure = draw(
        ROWS,
        {"recovered, 20 dB": 20.0},
        kinds=["heard", "estimated"],
        titles=titles,
        width=width,
        colours=LIGHT,
    )

    text = svg(figure).decode()
    for said in ("server, curious server", "ring, one neighbour", "17 \u00d7", "recovered, 20 dB"):
        assert f">{said}<" in text.replace("> ", ">").replace(" <", "<")
    assert ">0 \u00d7<" not in text
    assert figure.get_figwidth() * 72 == width


def test_equal_values_lie_beside_each_other() -> None:
    rows = [Strip(label="one", dots=[(60.0, "heard")] * 4, missed=0)]

    figure = draw(rows, {}, kinds=["heard"], titles=("x", "y"), width=960, colours=LIGHT)

    (area,) = figure.axes
    heights = {line.get_ydata()[0] for line in area.lines if line.get_marker() == "o"}  # type: ignore[index]
    assert len(heights) == 4


@pytest.mark.parametrize("letters", [80, 300])
def test_names_for_which_there_is_no_room_stand_above_the_rows(letters: int) -> None:
    rows = [Strip(label="x" * letters, dots=[(60.0, "heard")], missed=1)]

    figure = draw(rows, {}, kinds=["heard"], titles=("x", "y"), width=960, colours=LIGHT)

    (area,) = figure.axes
    assert area.get_position().width > 0.3
