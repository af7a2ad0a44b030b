"""Is this installation whole, and are its runs for their owner alone?

The four packages have plain names, so others may shadow them; versions may be too old; threads may
wait for each other; and what was overheard is private data.
"""

import importlib.util
import os
import socket
import stat
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

PACKAGES = ("attacks", "clients", "fedsim", "server")
_OTHERS = stat.S_IRWXG | stat.S_IRWXO
_PRIVATE = ("truth", "memory", "oracle")
"""Folders of a run that nobody but its owner may enter, even if the run itself is handed round."""
_MOST_NAMED = 5


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        ok: Whether it is as it should be.
        what: What was found, and what to do if it is not.
    """

    ok: bool
    what: str


def examine(runs: Path | None = None) -> list[Finding]:
    """Return what was found; `runs` is the folder of runs, by default that of experiments."""
    return [
        _side_by_side(),
        _python(),
        _versions(),
        *_requirements(),
        _threads(),
        _gpu(),
        _loopback(),
        *_permissions(_default_runs() if runs is None else runs),
    ]


def _default_runs() -> Path:
    from fedsim.config import OutputConfig

    return Path(OutputConfig().directory)


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


def _requirements() -> Iterator[Finding]:
    """Yield a finding for each package that fedsim needs and that is missing or of no use."""
    try:
        needed = [Requirement(one) for one in requires("fedsim") or ()]
    except PackageNotFoundError:
        yield Finding(False, "fedsim is not installed, only found; pip install it, or uv sync")
        return
    needed = [one for one in needed if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = []
    for one in needed:
        try:
            found = version(one.name)
        except PackageNotFoundError:
            wrong.append(f"{one.name} is missing")
            continue
        if not one.specifier.contains(found, prereleases=True):
            wrong.append(f"{one.name} {found} is not {one.specifier}")
    if wrong:
        yield Finding(False, f"{'; '.join(wrong)}: install the versions that fedsim asks for")
    else:
        yield Finding(True, f"all {len(needed)} packages that fedsim needs, in versions that do")


def _threads() -> Finding:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told) > (cores or 1):
        return Finding(
            False,
            f"OMP_NUM_THREADS={told} on {cores} cores: threads will wait for each other; set it "
            "to 1, workers are processes",
        )
    return Finding(True, f"{cores} cores; every worker computes with one thread")


def _gpu() -> Finding:
    import torch

    if torch.version.cuda is None or not Path("/dev/nvidiactl").exists():
        return Finding(True, "no GPU is used: clients and attacks run on the CPU")
    if not torch.cuda.is_available():
        return Finding(
            False,
            "there is a GPU, and PyTorch cannot use it: its driver may be older than PyTorch's "
            f"CUDA {torch.version.cuda}; bring it up to date, or ask for engine.device = 'cpu'",
        )
    return Finding(True, f"GPU: {torch.cuda.get_device_name(0)}, CUDA {torch.version.cuda}")


def _loopback() -> Finding:
    """Flower's runtime, Ray and the live page need ports of this machine."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=5.0):
                pass
    except OSError as error:
        return Finding(
            False,
            f"no port of the loopback address can be used ({error}): engines 'ray', 'flwr' and "
            "'deployment' need some; allow 127.0.0.1 in the firewall or the sandbox",
        )
    return Finding(True, "free ports on the loopback address")


def _permissions(runs: Path) -> Iterator[Finding]:
    """Yield a finding on who may read the runs in a folder."""
    if not runs.is_dir():
        yield Finding(True, f"no runs in '{runs}' yet; new ones are for their owner alone")
        return
    found, links, foreign = [], 0, 0
    for path in sorted(runs.iterdir()):
        links += path.is_symlink()
        try:
            if not path.is_symlink() and (path / "config.toml").is_file():
                found.append(path)
        except PermissionError:  # somebody else's, and rightly closed to us
            foreign += 1
    open_runs = [path for path in found if _may_others(path)]
    open_parts = [
        part
        for run in found
        for name in _PRIVATE
        if (part := run / name).is_dir() and _may_others(part) and _may_others(run)
    ]
    keys = [
        key
        for run in found
        for pattern in ("memory/keys-*.json", "memory/secure-aggregation-*.json")
        for key in run.glob(pattern)
        if _may_others(key)
    ]
    if open_parts:
        yield _bad(open_parts, "private data can be read by others", "chmod 700")
    elif open_runs:
        yield _bad(open_runs, "others may look into what was overheard", "chmod 700")
    else:
        yield Finding(True, f"{len(found)} runs in '{runs}', for their owner alone")
    if keys:
        yield _bad(keys, "keys that others may read", "chmod 600")
    if links:
        yield Finding(True, f"{links} links in '{runs}' are not looked at")
    if foreign:
        yield Finding(True, f"{foreign} folders in '{runs}' are closed to you, and not looked at")


def _bad(paths: list[Path], what: str, command: str) -> Finding:
    named = " ".join(f"'{path}'" for path in paths[:_MOST_NAMED])
    more = f" and {len(paths) - _MOST_NAMED} more" if len(paths) > _MOST_NAMED else ""
    return Finding(False, f"{what}: {command} {named}{more}")


def _may_others(path: Path) -> bool:
    """Whether anybody but the owner may read, change or enter it; who owns it is not asked."""
    return bool(path.lstat().st_mode & _OTHERS)
