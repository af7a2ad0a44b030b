"""What an adversary knows of the tokens that clients train on."""

from dataclasses import dataclass
from typing import Literal

IGNORED = -100
"""The label of a position whose token is not predicted."""

Head = Literal["masked", "causal", "classes"]
"""What a model predicts: tokens that were masked, each next token, or one class per example."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The public facts of a vocabulary and of how examples are made of it.

    An example is `start`, its tokens, `end`, and `pad` up to the length of all; those that are None
    are left out.

    Attributes:
        vocabulary_size: V; tokens are numbers from 0 to V-1.
        head: What is predicted. For "masked", some tokens of the input are `mask`, and the labels
            (B, T) hold what was there and `IGNORED` elsewhere. For "causal", the label of a
            position is the next token; `IGNORED` at the last. For "classes", labels are (B,).
        pad: Fills examples up; attends to nothing and predicts nothing.
        start: Opens an example.
        end: Closes it.
        mask: Stands in for a token that is to be predicted.
        unknown: Stands in for what has no token.
    """

    vocabulary_size: int
    head: Head
    pad: int = 0
    start: int | None = None
    end: int | None = None
    mask: int | None = None
    unknown: int | None = None

    @property
    def special(self) -> frozenset[int]:
        """The tokens that are no part of a text, without `unknown`."""
        return frozenset(
            one for one in (self.pad, self.start, self.end, self.mask) if one is not None
        )
