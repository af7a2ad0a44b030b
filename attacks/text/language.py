"""Language models as attacks see them: fed with tokens, or with embeddings in place of tokens."""

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import AttackFailed, Knowledge
from attacks.text.tokens import IGNORED, Tokens


@runtime_checkable
class LanguageModel(Protocol):
    """A module whose input may be tokens or their embeddings.

    Attributes:
        causal: Whether a token attends to those before it alone.
        token_embedding: Embeddings by token, (V, D); may be the output layer's weight as well.
        position_embedding: Learned embeddings by position, (P, D), added to those of tokens; None
            where positions are told otherwise.
    """

    causal: bool

    @property
    def token_embedding(self) -> nn.Embedding:
        """Embeddings by token, (V, D)."""

    @property
    def position_embedding(self) -> nn.Embedding | None:
        """Embeddings by position, (P, D)."""

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return logits, (B, T, V) or (B, K).

        Args:
            inputs: Tokens (B, T), int64, of which pads are attended by nobody; or, floating point,
                embeddings of tokens (B, T, D), none of which is a pad.
        """


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean cross entropy, in nats, over all that is predicted.

    Args:
        logits: Shape (B, K), or (B, T, V).
        labels: Classes (B,) or (B, T), int64, without the positions that are `IGNORED`; or weights
            of classes, shaped like the logits: the mean is over their sum, so that rows of zeros
            count for nothing.
    """
    if not labels.is_floating_point():
        flat = logits.flatten(0, -2), labels.flatten()
        return functional.cross_entropy(*flat, ignore_index=IGNORED)
    if logits.ndim == 2:
        return functional.cross_entropy(logits, labels)
    return -(labels * logits.log_softmax(dim=-1)).sum() / labels.sum()


def text_known(known: Knowledge) -> tuple[LanguageModel, Tokens]:
    """Return the language model and the tokens of a task on text.

    Raises:
        AttackFailed: The task is another, or the model was not granted.
    """
    if known.tokens is None:
        raise AttackFailed(
            "this attack is on text, and the clients' data are none; choose data such as "
            "'python-docs' and a model such as 'bert'"
        )
    if not isinstance(known.model, LanguageModel):
        raise AttackFailed(
            "this attack needs a language model that takes embeddings in place of tokens, got "
            f"{type(known.model).__name__}; grant 'architecture', or choose 'bert' or 'gpt2'"
        )
    return known.model, known.tokens


def num_tokens_heard(gradient: Tensor) -> int:
    """Return the length of the longest example, read off the gradient of position embeddings.

    A position that no example reaches has a row of zeros.

    Args:
        gradient: Shape (P, D).
    """
    used = torch.nonzero((gradient != 0).any(dim=1))
    return int(used.max()) + 1 if len(used) else 0
