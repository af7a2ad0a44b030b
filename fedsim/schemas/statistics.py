"""Parts of several documents: values over images, and how sure they are."""

from fedsim.schemas.document import Document


class Spread(Document):
    """A quality over images."""

    mean: float
    """Mean."""
    median: float
    """Median."""
    best: float
    """The highest for PSNR and SSIM, the lowest for MSE."""
    worst: float
    """The other end."""
    std: float | None
    """Sample standard deviation; null for a single image."""


class Medians(Document):
    """A baseline over images."""

    mse: float | None
    """Median over images."""
    psnr_db: float | None
    """Median over images."""
    ssim: float | None
    """Median over images."""
    registered_psnr_db: float | None = None
    """Median over images."""


class Interval(Document):
    """A measured value and how sure it is."""

    value: float
    """What was measured."""
    low: float | None = None
    """Lower end at the confidence of the document; null where there is too little to tell."""
    high: float | None = None
    """Upper end."""
