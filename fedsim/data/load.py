"""Load a data set by name, once per process."""

import functools
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path

from fedsim.components import build, find
from fedsim.data import DATASETS
from fedsim.data.kinds import TaskData


def load_data(name: str, *, root: str = "", options: Mapping[str, object]) -> TaskData:
    """Return the data set called `name`; the last few are kept for the life of the process.

    Args:
        name: From `fedsim list tasks`, `hf:NAME`, or the user's own `package.module:Name`: a
            function of keyword options that returns `ImageData`, `TextData` or `TableData`; it is
            given `root` if it asks.
        root: Folder of data sets that are not embedded; empty means the user's cache folder.
        options: What the user wrote.

    Raises:
        ConfigError: No such data set or option, or a value that an option cannot take.
        DataMissing: Its files are not there.
    """
    folder = Path(root).expanduser() if root else cache_folder()
    return _load(name, folder.resolve(), json.dumps(options, sort_keys=True, default=str))


@functools.lru_cache(maxsize=4)
def _load(name: str, root: Path, options: str) -> TaskData:
    factory = find("data", name, DATASETS)
    given = {"root": root} if "root" in inspect.signature(factory).parameters else {}
    data: TaskData = build("data", name, DATASETS, options=json.loads(options), **given)
    return data


def cache_folder() -> Path:
    """Return the user's folder for data sets: `fedsim` inside $XDG_CACHE_HOME or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedsim"
