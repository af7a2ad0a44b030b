"""What a client, or its defenses, remember from round to round.

It lies in the run directory, in a folder that its owner alone may enter, one file per round: a run
that is resumed after a kill goes back to what was remembered before the round it repeats. Without
a run directory it lies in Flower's own state of the node.
"""

from dataclasses import dataclass
from pathlib import Path

from flwr.app import RecordDict
from torch import Tensor

from attacks.observation import Tensors
from fedsim.files import read_tensors, replace_tensors
from fedsim.records import RunDirectory
from fedsim.wire import to_record, to_tensors

_KEPT = 2
"""Rounds of a client whose memory is kept: the last one, and the one before it."""

Remembered = dict[str, dict[str, Tensor]]
"""Tensors by name, by title of the defense that they belong to."""


@dataclass(frozen=True)
class Memory:
    """One memory of one client.

    Attributes:
        client: As records call it, with what is remembered where that is not its defenses'.
        run: Where it lies; None for Flower's state.
        state: Flower's state of this node.
    """

    client: str
    run: RunDirectory | None
    state: RecordDict

    def load(self, server_round: int) -> Remembered:
        """Return what was remembered before this round; nothing at first."""
        if self.run is None:
            record = self.state.array_records.get(self._key)
            return _by_title(to_tensors(record) if record is not None else {})
        earlier = [path for path in self._paths(self.run) if _round(path.stem) < server_round]
        return _by_title(read_tensors(earlier[-1])[0] if earlier else {})

    def save(self, server_round: int, remembered: Remembered) -> None:
        """Remember this, as of the end of a round."""
        flat = {
            f"{title}/{name}": tensor.detach().cpu().contiguous()
            for title, own in remembered.items()
            for name, tensor in own.items()
        }
        if self.run is None:
            if flat:
                self.state[self._key] = to_record(flat)
            return
        if not flat:
            return
        folder = self._folder(self.run)
        self.run.memory.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(exist_ok=True)
        replace_tensors(folder / f"round-{server_round:05d}.safetensors", flat)
        for old in self._paths(self.run)[:-_KEPT]:
            old.unlink(missing_ok=True)

    @property
    def _key(self) -> str:
        return f"fedsim-memory-{self.client}"

    def _paths(self, run: RunDirectory) -> list[Path]:
        return sorted(self._folder(run).glob("round-*.safetensors"))

    def _folder(self, run: RunDirectory) -> Path:
        # one per client: a folder of all would be read through at every message
        return run.memory / self.client


def _round(stem: str) -> int:
    return int(stem.rpartition("-")[2])


def _by_title(flat: Tensors) -> Remembered:
    remembered: Remembered = {}
    for key, tensor in flat.items():
        title, _, name = key.partition("/")
        remembered.setdefault(title, {})[name] = tensor
    return remembered
