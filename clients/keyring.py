"""Where a peer keeps its keys: they never leave it.

In a folder of the run directory that its owner alone may enter, in a file that its owner alone may
read; without a run directory, in Flower's own state of the node.
"""

from dataclasses import dataclass
from pathlib import Path

from flwr.app import ConfigRecord, RecordDict

from fedsim.end_to_end import Keyring
from fedsim.files import replace_bytes
from fedsim.records import RunDirectory

_STATE = "fedsim-keyring"


@dataclass(frozen=True)
class KeyStore:
    """The keys of one peer.

    Attributes:
        peer: Its number.
        run: The run directory; None for Flower's state.
        state: Flower's state of this node.
    """

    peer: int
    run: RunDirectory | None
    state: RecordDict

    def load(self) -> Keyring | None:
        """Return what was kept last; None before the peer has a key.

        Raises:
            KeysDiffer: The file is damaged.
        """
        if self.run is None:
            record = self.state.config_records.get(_STATE)
            return None if record is None else Keyring.from_json(str(record[_STATE]))
        path = self._path(self.run)
        return Keyring.from_json(path.read_text()) if path.is_file() else None

    def keep(self, ring: Keyring) -> None:
        """Keep this in place of what was kept before."""
        if self.run is None:
            self.state[_STATE] = ConfigRecord({_STATE: ring.to_json()})
            return
        self.run.memory.mkdir(mode=0o700, exist_ok=True)
        replace_bytes(self._path(self.run), ring.to_json().encode(), private=True)

    def own(self) -> Keyring:
        """Return what was kept last; at first, a new key."""
        ring = self.load()
        if ring is None:
            ring = Keyring.new("" if self.run is None else self.run.root.name, self.peer)
            self.keep(ring)
        return ring

    def _path(self, run: RunDirectory) -> Path:
        return run.memory / f"keys-client-{self.peer}.json"
