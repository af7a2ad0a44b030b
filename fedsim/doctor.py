"""Is this installation whole? The four packages have plain names, so others may shadow them."""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGES = ("attacks", "clients", "fedsim", "server")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        ok: Whether it is as it should be.
        what: What was found, and what to do if it is not.
    """

    ok: bool
    what: str


def examine() -> list[Finding]:
    """Return what was found."""
    return [_side_by_side(), _python(), _versions()]


def _side_by_side() -> Finding:
    homes = {}
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        homes[name] = Path(spec.origin).parent.parent if spec and spec.origin else None
    wrong = sorted(name for name, home in homes.items() if home != homes["fedsim"])
    if wrong:
        return Finding(
            False,
            f"{', '.join(wrong)}: not the packages beside fedsim; something else of that name "
            "comes first on sys.path. Install fedsim into an environment of its own",
        )
    return Finding(True, "attacks, clients, fedsim and server lie side by side")


def _python() -> Finding:
    version = ".".join(map(str, sys.version_info[:3]))
    return Finding(sys.version_info >= (3, 11), f"Python {version}; at least 3.11 is needed")


def _versions() -> Finding:
    import flwr
    import torch

    found = f"torch {torch.__version__}, flwr {flwr.__version__}"
    floor = tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])
    return Finding(floor >= (2, 10), f"{found}; torch must be at least 2.10")
