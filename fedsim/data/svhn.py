"""Street View House Numbers, cropped digits, in MATLAB format."""

import math
import zlib
from pathlib import Path

import numpy as np

from fedsim.data.files import locate, note_unpublished
from fedsim.data.images import Array, ImageData, Limit, image_data, split
from fedsim.errors import FedsimError

LARGEST = 2**30
"""Bytes of a file, and of an array; the training images have 225 million."""
_GLANCE = 4096
"""Bytes at the beginning of an array that are looked at."""
_MOST_PACKED = 1032
"""How many bytes one packed byte stands for, at most."""
_PACKED, _MATRIX = 15, 14
_NUMBERS = frozenset(range(6, 16))
"""Classes of arrays of numbers."""


def svhn(*, root: Path, download: bool = False, limit: Limit = None) -> ImageData:
    """SVHN: house numbers from street photographs, 32x32, colour, 10 classes (Netzer et al., 2011).

    For non-commercial use only. Where `test_32x32.mat` is missing, a fixed, stratified fifth of
    the training file is the test split.

    Args:
        root: Holds `train_32x32.mat` and `test_32x32.mat`.
        download: Whether torchvision may download them.
        limit: Keep only so many examples of each split, the first ones.

    Raises:
        DataMissing: The training file is not there.
    """
    from torchvision.datasets import SVHN

    def fetch(folder: Path) -> None:
        for part in ("train", "test"):
            SVHN(folder, split=part, download=True)

    parts = {part: SVHN.split_list[part][1:] for part in ("train", "test")}
    folder = locate("svhn", root, [parts["train"][0]], download=fetch if download else None)
    arrays = {
        part: _read(folder / file, md5)
        for part, (file, md5) in parts.items()
        if (folder / file).is_file()
    }
    train, test = (arrays["train"], arrays["test"]) if "test" in arrays else split(*arrays["train"])
    names = [str(digit) for digit in range(10)]
    return image_data("svhn", train, test, class_names=names, limit=limit)


def _read(file: Path, md5: str) -> tuple[Array, Array]:
    """Return images (N, C, H, W) and labels (N,).

    Raises:
        FedsimError: It is no such file.
    """
    note_unpublished(file, md5)
    content = read_mat(file)
    images, labels = content.get("X"), content.get("y")
    if images is None or labels is None or images.ndim != 4 or images.shape[3] != labels.size:
        raise FedsimError(f"{file} holds no images 'X' and labels 'y' for them")
    return images.transpose(3, 2, 0, 1), labels.ravel() % 10  # 10 stands for the digit 0


def read_mat(file: Path) -> dict[str, Array]:
    """Return the arrays of numbers in a MATLAB file, by name.

    Raises:
        FedsimError: It is no such file, or holds anything else.
    """
    from scipy.io import loadmat

    try:
        _check_parts(file)
        found = loadmat(file)
    except Exception as error:  # bytes of a stranger: no list of what the reader raises is whole
        raise FedsimError(f"{file} cannot be read: {str(error)[:300]}") from error
    return {name: one for name, one in found.items() if isinstance(one, np.ndarray)}


def _check_parts(file: Path) -> None:
    """Refuse what is no list of arrays of numbers, or says that it takes more than it can.

    A part is a type, a length and as many bytes, packed or not. The reader makes room for what a
    part says that it holds.

    Raises:
        ValueError: The message says why.
    """
    held = file.stat().st_size
    if held > LARGEST:
        raise ValueError(f"{held} bytes are more than {LARGEST}")
    with file.open("rb") as stream:
        head = stream.read(128)
        if len(head) < 128 or head[124:128] != b"\x00\x01IM":
            raise ValueError("no MATLAB file of version 5")
        at = 128
        while at < held:
            stream.seek(at)
            kind, length = _tag(stream.read(8))
            if length > held - at - 8:
                raise ValueError(f"a part of {length} bytes, and {held - at - 8} follow")
            part = stream.read(min(length, _GLANCE))
            if kind == _PACKED:
                part = zlib.decompressobj().decompress(part, _GLANCE)
                kind, unpacked = _tag(part[:8])
                if unpacked > _MOST_PACKED * length + _GLANCE or unpacked > LARGEST:
                    raise ValueError(f"{length} bytes cannot hold {unpacked}")
                part, within = part[8:], unpacked
            else:
                within = length
            if kind != _MATRIX:
                raise ValueError(f"a part of type {kind} is no array")
            _check_matrix(part, within)
            at += 8 + length


def _check_matrix(part: bytes, within: int) -> None:
    """Check that an array is one of numbers, and that its shape fits its bytes."""
    _, flags_length = _tag(part[:8])
    flags = part[8] if len(part) > 8 else 0
    if flags_length != 8 or flags not in _NUMBERS:
        raise ValueError(f"an array of class {flags}, and not of numbers")
    axes_kind, axes_length = _tag(part[16:24])
    if axes_kind != 5 or not 8 <= axes_length <= 32 or axes_length % 4:
        raise ValueError("an array without a shape")
    axes = part[24 : 24 + axes_length]
    shape = [int.from_bytes(axes[i : i + 4], "little", signed=True) for i in range(0, len(axes), 4)]
    if min(shape) < 0 or math.prod(shape) > within:
        raise ValueError(f"an array of shape {shape} in {within} bytes")
    at = 24 + -(-axes_length // 8) * 8
    for _ in range(2):  # its name, then its numbers
        tag = part[at : at + 8]
        if int.from_bytes(tag[2:4], "little"):  # short: type, length and bytes in one
            at += 8
            continue
        _, length = _tag(tag)
        if length > within:
            raise ValueError(f"{length} bytes within {within}")
        at += 8 + -(-length // 8) * 8


def _tag(eight: bytes) -> tuple[int, int]:
    if len(eight) < 8:
        raise ValueError("it ends in the middle of a part")
    return int.from_bytes(eight[:4], "little"), int.from_bytes(eight[4:], "little")
