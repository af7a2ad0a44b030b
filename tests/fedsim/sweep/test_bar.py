"""How far a sweep is, where nobody watches a terminal."""

from io import StringIO
from pathlib import Path

from rich.console import Console

from fedsim.sweep.bar import SweepBar
from fedsim.sweep.driver import SweepProgress


def test_an_interrupted_sweep_says_at_once_what_it_waits_for() -> None:
    for terminal in (True, False):
        log = StringIO()
        with SweepBar(Console(file=log, width=80, force_terminal=terminal)) as bar:
            bar.watch(SweepProgress(Path("sweep"), total=2, stopping=True))

        assert "interrupted: ending the runs under way; what is done is kept" in log.getvalue()


def test_a_log_gets_a_line_whenever_a_run_ends() -> None:
    log = StringIO()

    with SweepBar(Console(file=log, width=80)) as bar:
        for ended in range(3):
            bar.watch(SweepProgress(Path("sweep"), total=2, ended=ended))

    lines = log.getvalue().splitlines()
    assert [line for line in lines if line.endswith("ended")] == [
        "0 of 2 runs ended",
        "1 of 2 runs ended",
        "2 of 2 runs ended",
    ]
