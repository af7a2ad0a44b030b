"""What a target of fuzzing is."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.errors import FedsimError
from tests.fuzz.mutate import Tree

DOCUMENT = "document"
"""A tree that is written as JSON."""
TREE = "tree"
"""A tree that is handed over as it is."""


class Unbuildable(Exception):
    """No message can look like this, so nobody can send it."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """One parser.

    Attributes:
        name: For reports.
        seeds: What it reads gladly.
        feed: Lets it read a mutated seed.
        form: `document` or `tree`.
        refusals: What it may raise.
    """

    name: str
    seeds: list[Tree]
    feed: Callable[[Any], object]
    form: str = TREE
    refusals: tuple[type[Exception], ...] = (FedsimError,)


def written(path: Path, read: Callable[[], object]) -> Callable[[bytes], object]:
    """Return what writes bytes into a file before something reads it."""

    def feed(content: bytes) -> object:
        path.write_bytes(content)
        return read()

    return feed
