"""TAG (Deng et al., EMNLP Findings 2021, https://arxiv.org/abs/2103.06819).

As DLG on text, but the distance of gradients is their squared and their absolute one, and early
layers count for more than late ones. Differs from the paper: AdamW moves a fifth to a tenth as far
per step, because embeddings of small models are that much smaller; and what `attacks.text.dlg_text`
says of labels and of the end of the search.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from attacks.settings import require_choice, require_weights
from attacks.text.embedding_matching import EmbeddingMatching, Optimizer
from attacks.text.victim import TextVictim


@dataclass(frozen=True, kw_only=True)
class TAG(EmbeddingMatching):
    """Find tokens whose gradient is the one heard, in squared and absolute distance.

    Attributes:
        steps: AdamW steps of a restart.
        step_size: First step; it falls linearly to 0.
        absolute_weight: Weight of the absolute distance, "alpha".
        layers: Whether weights of tensors fall "linear" from first to last, or are "even".
        clip: Longest slope of the embeddings before a step is taken.
    """

    steps: int = 1_000
    step_size: float = 0.01
    absolute_weight: float = 0.01
    layers: Literal["linear", "even"] = "linear"
    clip: float = 1.0

    optimizer: ClassVar[Optimizer] = "adamw"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        super().__post_init__()
        require_weights(self, "absolute_weight", "clip")
        require_choice(self, "layers", "linear", "even")

    def distance(self, found: Mapping[str, Tensor], victim: TextVictim) -> Tensor:
        """Return the weighted sum of squared and absolute distances."""
        return squared_and_absolute(
            found, victim, absolute_weight=self.absolute_weight, falling=self.layers == "linear"
        )

    def rate(self, step: int) -> float:
        """Fall linearly to 0."""
        return max(0.0, 1 - step / max(1, self.steps))

    def tame(self, moved: Sequence[Tensor]) -> None:
        """Shorten long slopes."""
        if self.clip:
            torch.nn.utils.clip_grad_norm_(moved, self.clip)


def squared_and_absolute(
    found: Mapping[str, Tensor], victim: TextVictim, *, absolute_weight: float, falling: bool
) -> Tensor:
    """Return TAG's distance.

    Args:
        found: A gradient.
        victim: With the gradient heard.
        absolute_weight: Weight of the absolute distance against the squared one.
        falling: Whether weights of tensors fall linearly from 1 at the first.
    """
    total = len(victim.target)
    parts = []
    for number, (name, heard) in enumerate(victim.target.items()):
        apart = found[name] - heard
        part = apart.square().sum() + absolute_weight * apart.abs().sum()
        parts.append((1 - number / total if falling else 1.0) * part)
    return torch.stack(parts).sum()
