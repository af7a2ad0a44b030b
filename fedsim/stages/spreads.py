"""A quality over images, in a few numbers."""

from collections.abc import Iterable
from statistics import fmean, median, stdev

from fedsim.schemas.statistics import Spread


def spread(values: Iterable[float | None], *, lower_is_better: bool = False) -> Spread | None:
    """Return mean, median, ends and sample standard deviation; None is left out, as is nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return None
    low, high = min(known), max(known)
    return Spread(
        mean=fmean(known),
        median=median(known),
        best=low if lower_is_better else high,
        worst=high if lower_is_better else low,
        std=stdev(known) if len(known) > 1 else None,
    )
