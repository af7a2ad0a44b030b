"""Gradients in coordinates in which the one heard is white. No paper.

The gradient of a linear layer's weight is a sum over examples of (slope at the output) x (input).
What all inputs have in common makes up most of it, and what tells one example from another is
smaller by orders of magnitude: compared as they are, two gradients that agree on the mean of a
batch are almost parallel. So each weight gradient G is multiplied by (G'G + t I)^(-1/2) of the one
heard, which makes every direction that the inputs of the batch span count alike. And a guess that
leaves this span, which has no more dimensions than the batch has rows, is far off at once.
"""

import torch
from torch import Tensor

from attacks.observation import Tensors


class Whitening:
    """A linear map of gradients, made from the one heard.

    Args:
        heard: By parameter name.
        threshold: t, relative to the largest eigenvalue of G'G: directions well below it count
            less. 0 leaves gradients as they are.
        num_rows: B. A batch spans no more directions: what is beyond them is noise, and t is no
            less than that.
    """

    def __init__(self, heard: Tensors, *, threshold: float, num_rows: int) -> None:
        self.threshold = threshold
        self.dims = {name: tensor.dim() for name, tensor in heard.items()}
        self.maps: dict[str, Tensor] = {}
        self.scales: dict[str, Tensor] = {}
        if threshold == 0:
            return
        for name, matrix in self._matrices(heard).items():
            if matrix.shape[-1] > 1 and bool(matrix.any()):
                self.maps[name] = _inverse_root(matrix, threshold, num_rows)
        self.scales = {
            name: 1 / tensor.norm().clamp_min(torch.finfo(tensor.dtype).tiny)
            for name, tensor in self._mapped(heard).items()
        }

    def __call__(self, gradient: Tensors) -> Tensor:
        """Return a gradient in these coordinates, (..., N), from tensors (..., shape) by name."""
        if self.threshold == 0:
            parts = {name: self._flat(name, tensor, 0) for name, tensor in gradient.items()}
        else:
            parts = {
                name: (tensor * self.scales[name]).flatten(-2)
                for name, tensor in self._mapped(gradient).items()
            }
        return torch.cat([parts[name] for name in sorted(parts)], dim=-1)

    def _mapped(self, gradient: Tensors) -> dict[str, Tensor]:
        return {
            name: matrix @ self.maps[name] if name in self.maps else matrix
            for name, matrix in self._matrices(gradient).items()
        }

    def _matrices(self, gradient: Tensors) -> dict[str, Tensor]:
        """Return weights as matrices (..., outputs, inputs), a bias as one more input."""
        found: dict[str, Tensor] = {}
        for name, tensor in gradient.items():
            if self.dims[name] < 2:
                continue
            matrix = self._flat(name, tensor, 1)
            bias = name.removesuffix("weight") + "bias"
            if self._goes_with(name, bias, gradient):
                matrix = torch.cat((matrix, gradient[bias][..., None]), dim=-1)
            found[name] = matrix
        for name, tensor in gradient.items():
            weight = name.removesuffix("bias") + "weight"
            if self.dims[name] < 2 and not self._goes_with(weight, name, gradient):
                found[name] = self._flat(name, tensor, 0)[..., None]
        return found

    def _goes_with(self, weight: str, bias: str, gradient: Tensors) -> bool:
        if self.dims.get(weight, 0) < 2 or self.dims.get(bias) != 1:
            return False
        return gradient[bias].shape[-1] == gradient[weight].shape[-self.dims[weight]]

    def _flat(self, name: str, tensor: Tensor, kept: int) -> Tensor:
        """Return a tensor with its own axes flattened, but for the first `kept` of them."""
        before = tensor.dim() - self.dims[name]
        return tensor.reshape(*tensor.shape[: before + kept], -1)


def _inverse_root(matrix: Tensor, threshold: float, num_rows: int) -> Tensor:
    """Return (G'G + t I)^(-1/2), scaled so that the largest direction keeps its length."""
    exact = matrix.double()
    values, vectors = torch.linalg.eigh(exact.mT @ exact)
    values = values.clamp_min(0) / values[-1]  # ascending
    if len(values) > num_rows:
        threshold = max(threshold, float(values[-num_rows - 1]))
    root: Tensor = (vectors * (values + threshold).rsqrt()) @ vectors.mT
    return root.to(matrix)
