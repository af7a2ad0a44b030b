"""Street View House Numbers, cropped digits, in MATLAB format."""

from pathlib import Path

from fedsim.data.files import locate, note_unpublished
from fedsim.data.images import Array, ImageData, Limit, image_data, split
from fedsim.data.matlab import read_mat
from fedsim.errors import FedsimError


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
