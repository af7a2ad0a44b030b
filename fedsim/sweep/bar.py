"""How far a sweep is, as it happens."""

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fedsim.sweep.driver import SweepProgress


class SweepBar:
    """Draws a sweep's progress in place, or in lines where there is no terminal; a context manager.

    Args:
        console: Where to draw.
    """

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.bar = Progress(*columns, TimeElapsedColumn(), console=console)
        self.task = self.bar.add_task("runs", total=None)
        self.said = 0

    def __enter__(self) -> "SweepBar":
        self.bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.stop()

    def watch(self, progress: SweepProgress) -> None:
        """Draw where the sweep stands, and say what failed."""
        self.bar.update(self.task, completed=progress.ended, total=progress.total)
        for outcome in progress.failed[self.said :]:
            self.bar.console.print(f"run {outcome.digest} failed: {outcome.reason}", markup=False)
        self.said = len(progress.failed)
        if progress.stopping:
            said = "interrupted: ending the runs under way; what is done is kept"
            self.bar.console.print(said, markup=False, soft_wrap=True)
        elif not self.bar.console.is_terminal:
            self.bar.console.print(f"{progress.ended} of {progress.total} runs ended")
