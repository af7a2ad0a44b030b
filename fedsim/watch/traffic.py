"""What crossed tapped links of a deployment: of what is encrypted, sizes and times alone."""

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from fedsim.files import Record
from fedsim.watch.tail import Line
from fedsim.watch.values import number, text, whole

MOST_LINKS = 40
"""Links that a page tells apart: the first that were heard. Further ones are told as one."""
MOST_NAMES = 10_000
"""Further links that are counted."""
LONGEST_S = 1e6
"""Seconds of one burst that are believed."""
MOST_BURSTS = 240
"""Newest bursts that a page shows one by one."""


@dataclass
class _Link:
    """What crossed one link."""

    sizes: dict[str, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    bursts: int = 0
    encrypted: int = 0

    @property
    def record(self) -> Record:
        """As a page is told."""
        return {**self.sizes, "bursts": self.bursts, "encrypted": self.encrypted}


class Traffic:
    """All that was recorded of the traffic of a run."""

    def __init__(self) -> None:
        self.links: dict[str, _Link] = {}
        self.further, self.further_names = _Link(), set[str]()
        self.bursts: deque[tuple[float, str, int]] = deque(maxlen=MOST_BURSTS)
        self.left_out = 0

    def add(self, line: Line) -> None:
        """Take in one burst; one that makes no sense is counted."""
        record = line.record
        name, direction = text(record.get("link"), 60), record.get("direction")
        size = whole(record.get("bytes"), 2**50)
        when = _seconds(record.get("time"))
        if not name or direction not in ("up", "down") or size is None or when is None:
            self.left_out += 1
            return
        link = self._link(name)
        encrypted = record.get("encrypted") is True
        link.sizes[str(direction)] += size
        link.bursts += 1
        link.encrypted += encrypted
        middle = when + min(max(number(record.get("seconds")) or 0.0, 0.0), LONGEST_S) / 2
        self.bursts.append((round(middle, 1), str(direction), size))

    def _link(self, name: str) -> _Link:
        if name in self.links or len(self.links) < MOST_LINKS:
            return self.links.setdefault(name, _Link())
        if len(self.further_names) < MOST_NAMES:
            self.further_names.add(name)
        return self.further

    @property
    def all_encrypted(self) -> bool:
        """Whether anything crossed, and none of it could be read."""
        links = [*self.links.values(), self.further]
        return bool(self.links) and all(one.encrypted == one.bursts for one in links)

    def section(self) -> Record | None:
        """Return what a page is told; None where nobody recorded anything."""
        if not self.links:
            return None
        names = sorted(self.links, key=lambda name: (len(name), name))
        start = min(when for when, *_ in self.bursts)
        return {
            "links": [{"name": name, **self.links[name].record} for name in names],
            "further": {"links": len(self.further_names), **self.further.record},
            "bursts": [
                [round(when - start, 1), direction, size] for when, direction, size in self.bursts
            ],
            "left_out": self.left_out,
        }


def _seconds(value: object) -> float | None:
    try:
        return datetime.fromisoformat(str(value)).timestamp()
    except (ValueError, OverflowError, OSError):
        return None
