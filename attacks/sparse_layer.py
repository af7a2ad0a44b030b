"""What attacks on a first linear layer that is followed by a ReLU share.

Such a layer's sensitivities are zero where an example is not active, which tells examples apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.first_layer import FirstLayer, first_layer, layer_gradient, require_sparsity
from attacks.observation import (
    AttackFailed,
    Knowledge,
    Observation,
    gradient_of,
    only,
    require_one_step,
)
from attacks.threats import WHITE_BOX, Capability


class SparseLayerAttack:
    """What is needed, and what is refused."""

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what inputs look like, and how many there are."""
        return WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, and models whose first layer is not linear with a ReLU."""
        require_one_step(known.recipe)
        require_sparsity(first_layer(known))


@dataclass(frozen=True, kw_only=True, eq=False)
class SparseGradient:
    """What was heard of such a layer.

    Attributes:
        layer: The model in force, cut behind it.
        gradient: Of its weight, and of its bias as the last column, (m, D + 1) float64; zero in
            rows that were not heard completely.
        heard: Which rows were, (m,) bool.
        batch_size: B.
        dtype: Of the update.
    """

    layer: FirstLayer
    gradient: Tensor
    heard: Tensor
    batch_size: int
    dtype: torch.dtype


def sparse_gradient(seen: Observation | Sequence[Observation], known: Knowledge) -> SparseGradient:
    """Return the gradient of the first layer.

    Raises:
        AttackFailed: The batch size was not granted, the weights in force or the layer's gradient
            were not heard, or it is not followed by a ReLU; see also `first_layer`.
    """
    seen = only(seen)
    if known.batch_size is None:
        raise AttackFailed("every example's share is 1 / B; grant 'batch-size'")
    if seen.weights is None:
        raise AttackFailed("what is found is checked with the weights in force; none heard")
    layer = first_layer(known, seen.weights, seen.buffers)
    require_sparsity(layer)
    update = gradient_of(seen, known.recipe)
    weight, bias, heard = layer_gradient(update, layer.name, seen.visible)
    return SparseGradient(
        layer=layer,
        gradient=torch.cat([weight, bias[:, None]], 1),
        heard=heard,
        batch_size=known.batch_size,
        dtype=next(iter(seen.update.values())).dtype,
    )
