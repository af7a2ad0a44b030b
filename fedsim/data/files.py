"""Find the files of a data set, or say exactly which are missing."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from fedsim.errors import DataMissing

logger = logging.getLogger(__name__)

MOST_BYTES = 256 * 2**20
"""Of one file of texts or of a table."""


def locate(
    name: str,
    root: Path,
    files: Sequence[str],
    *,
    endings: Sequence[str] = ("",),
    download: Callable[[Path], object] | None = None,
    otherwise: str = "set data.options.download = true",
) -> Path:
    """Return the folder that holds all of `files`: `root`, or the folder of that name inside it.

    Args:
        name: The data set; its folder inside `root` has the same name with underscores.
        root: Where to look.
        files: Paths relative to the folder.
        endings: A file counts as present with any of these appended to its name.
        download: Puts the files into the folder it is given; None when that is not allowed.
        otherwise: What else can be done where they are missing and nothing is downloaded.

    Raises:
        DataMissing: Files are missing and could not be downloaded.
    """
    inner = root / name.replace("-", "_")
    for folder in (root, inner):
        if all(any((folder / f"{file}{end}").is_file() for end in endings) for file in files):
            return folder
    shown = f"{name}: expected {', '.join(files)} in '{root}' or '{inner}'"
    if download is None:
        raise DataMissing(
            f"{shown}; place the files there, set data.root to the folder that holds them, "
            f"or {otherwise}"
        )
    try:
        download(root)
    except (OSError, RuntimeError) as error:  # what torchvision and urllib raise without a network
        raise DataMissing(
            f"{shown}; downloading them failed: {error}; place the files there, or set data.root "
            "to the folder that holds them"
        ) from error
    return locate(name, root, files, endings=endings)


def note_unpublished(file: Path, md5: str) -> None:
    """Log a warning when `file` does not have its published checksum: a subset, or another copy."""
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != md5:
        logger.warning("%s is not the published file: its md5 is %s, not %s", file, found, md5)
