from benchmarks.performance import fill

PAGE = "before\n<!-- measured: engines -->\nold\n<!-- end -->\nafter\n"


def overheads(value: float) -> dict[str, object]:
    """Return results of one engine on one model."""
    row = {"engine": "local", "model": "lenet", "overhead": value, "low": 1.0, "high": 2.0}
    return {"engines": {"overhead": [{**row, "rounds": 8}], "empty": []}}


def test_a_goal_stands_beside_its_figure_and_says_whether_it_was_reached() -> None:
    missed = fill(PAGE, overheads(1.5))
    reached = fill(PAGE, overheads(1.05))

    row = "| in-process, LeNet: CPU over that of the bare steps | <= 1.1x |"
    assert f"{row} 1.5x (1 to 2); 8 rounds | missed |" in missed
    assert f"{row} 1.05x (1 to 2); 8 rounds | reached |" in reached
    assert missed.startswith("before\n")
    assert missed.endswith("<!-- end -->\nafter\n")


def test_what_no_run_left_a_figure_of_is_not_measured() -> None:
    page = fill(PAGE, {})

    rows = [line for line in page.splitlines() if line.startswith("| in-process")]
    assert len(rows) == 3
    assert all("not measured" in row and "reached" not in row for row in rows)
    assert "old" not in page


def test_filling_a_page_again_changes_nothing() -> None:
    once = fill(PAGE, overheads(1.5))

    assert fill(once, overheads(1.5)) == once
