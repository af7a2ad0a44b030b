"""Handwritten digits that come with scikit-learn."""

from fedsim.data.images import ImageData, Limit, image_data, split


def digits(*, limit: Limit = None) -> ImageData:
    """Handwritten digits, 8x8, grey, 10 classes; embedded, nothing to download.

    1,797 images of the UCI "Optical Recognition of Handwritten Digits" test set (Alpaydin and
    Kaynak, 1998, CC BY 4.0), as scikit-learn ships them. 17 grey levels, divided by 16. The
    source has no split: a fixed, stratified fifth is the test split.

    Args:
        limit: Keep only so many examples of each split, the first ones.
    """
    from sklearn.datasets import load_digits

    source = load_digits()
    train, test = split(source.images[:, None], source.target)
    names = [str(digit) for digit in range(10)]
    return image_data("digits", train, test, class_names=names, highest=16, limit=limit)
