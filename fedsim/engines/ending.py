"""How a ServerApp that runs in another process came to its end.

Its exit code does not tell: Flower ends one that is asked to go with code 0. Nor does the last
round: a run with patience stops early. So the ServerApp leaves an empty file when training is over.
"""

from pathlib import Path

from flwr.app import Context, UserConfig

from fedsim.records import RunDirectory
from fedsim.wire import NOTE_FAILURE

MARK = "end-mark"
"""Where the ServerApp leaves a file once training is over."""


class Ending:
    """Tells how the ServerApp of one try of a run ended; made before it starts.

    Args:
        run: Where it notes why it failed.
        folder: A folder of this try alone, which the ServerApp can write to.
    """

    def __init__(self, run: RunDirectory, folder: Path) -> None:
        self.run = run
        self.mark = folder.resolve() / "training-is-over"
        self.events_before = len(run.events())

    @property
    def config(self) -> UserConfig:
        """What the run configuration has to hold."""
        return {NOTE_FAILURE: True, MARK: str(self.mark)}

    @property
    def good(self) -> bool:
        """Whether training came to its end."""
        return self.mark.is_file()

    @property
    def reason(self) -> str | None:
        """Why the ServerApp of this try failed, if it could say."""
        events = self.run.events()[self.events_before :]
        noted = [str(one["message"]) for one in events if one["kind"] == "server-failed"]
        return noted[-1] if noted else None


def note_end(context: Context) -> None:
    """Leave the mark, if somebody waits for it; training must be over."""
    if mark := context.run_config.get(MARK):
        Path(str(mark)).touch()
