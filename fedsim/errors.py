"""Errors whose messages are meant for the person who runs an experiment."""

import traceback
from pathlib import Path


class FedsimError(Exception):
    """Base: the message says where, what was expected, what came, and what to do."""


class ConfigError(FedsimError):
    """The experiment asks for something that cannot be."""


class DataMissing(FedsimError):
    """A data set is neither on disk nor to be had; the message says what to place where."""


class RunFailed(FedsimError):
    """The run ended early; what it recorded is kept and usable."""


class Damaged(FedsimError, ValueError):
    """A file is not what fedsim writes: cut short, changed, or made by somebody else."""


def trail(error: BaseException, most: int = 8) -> list[str]:
    """Return where an unforeseen error came from, innermost last; without anybody's folders."""
    frames = traceback.extract_tb(error.__traceback__)[-most:]
    return [f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}" for frame in frames]
