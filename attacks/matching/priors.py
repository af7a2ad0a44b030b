"""What images look like before anything was heard."""

from torch import Tensor


def total_variation(images: Tensor) -> Tensor:
    """Return the mean absolute difference of horizontal plus that of vertical neighbours.

    As in Inverting Gradients. 0 for a constant image; 2 for a checkerboard of 0 and 1.

    Args:
        images: Shape (..., H, W); an axis of one pixel has no neighbours and adds nothing.
    """
    total = images.new_zeros(())
    for axis in (-1, -2):
        if images.shape[axis] > 1:
            total = total + images.diff(dim=axis).abs().mean()
    return total
