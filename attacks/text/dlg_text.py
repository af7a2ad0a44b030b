"""DLG on text (Zhu et al., 2019, https://arxiv.org/abs/1906.08935, section 4.2).

Embeddings in place of tokens are searched for until the gradient they give is the one heard, in
squared distance over all layers, by L-BFGS; each is then read as the nearest token. Differs from
the paper: a line search; labels are not searched for where the gradient tells them, and where they
are known to be tokens, they enter as rows of the output layer (`attacks.text.predictions`); tensors
with a row per token are not matched; the search ends once the tokens read are proved.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from attacks.settings import require_counts
from attacks.text.embedding_matching import EmbeddingMatching, Optimizer, squared
from attacks.text.victim import TextVictim


@dataclass(frozen=True, kw_only=True)
class DLGText(EmbeddingMatching):
    """Find tokens whose gradient is the one heard, as DLG does.

    Attributes:
        steps: L-BFGS steps of a restart.
        step_size: First trial of the line search.
        restarts: Most restarts; the best by the matching loss is taken.
        inner: Iterations of L-BFGS in a step; PyTorch's, and so the paper's, has 20.
    """

    steps: int = 100
    step_size: float = 1.0
    restarts: int = 2
    inner: int = 4

    optimizer: ClassVar[Optimizer] = "lbfgs"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        super().__post_init__()
        require_counts(self, "inner")

    def distance(self, found: Mapping[str, Tensor], victim: TextVictim) -> Tensor:
        """Return the squared distance, relative to the gradient heard."""
        return squared(found, victim) / victim.norm**2
