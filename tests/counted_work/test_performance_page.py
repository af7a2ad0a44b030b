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


def test_other_simulators_stand_beside_ours_with_their_versions() -> None:
    row = {"model": "mlp", "overhead": 5.5, "low": 5.0, "high": 6.0, "rounds": 2}
    rows = [
        {**row, "simulator": "flower"},
        {**row, "simulator": "pfl", "overhead": 1.3, "versions": {"pfl": "0.6.0"}},
    ]
    measured = {"python": "3.11", "torch": "2.15", "versions": {"flwr": "1.41"}, "rows": rows}

    page = fill("<!-- measured: simulators -->\n<!-- end -->", {"simulators": measured})

    lines = page.splitlines()
    assert "| pfl-research | not measured | 1.3x (5 to 6); 2 rounds | not measured |" in lines
    assert "| ours, in-process | not measured | not measured | not measured |" in lines
    assert any("simulation | not measured | 5.5x (5 to 6); 2 rounds" in line for line in lines)
    assert lines[-4:-1] == [
        "Ours and Flower: python 3.11, torch 2.15, flwr 1.41.",
        "",
        "pfl-research: pfl 0.6.0.",
    ]
