"""How close two texts are, token by token; one value per text.

ROUGE is that of Lin (2004, https://aclanthology.org/W04-1013), as torchmetrics computes it, on
tokens in place of words: nothing is stemmed, split or downloaded. A pair of tokens is needed for
ROUGE-2: that of a text of one token is 0.

Shapes: G guessed and T private texts of at most L tokens, int64. Tokens in `special` (pads, and
what opens and closes a text) count for nothing, wherever they stand.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.metrics.assignment import match_by

_TIE = 1e-6
"""What a bag of the right tokens weighs against one token at its place."""


def token_accuracy(guess: Tensor, truth: Tensor, *, special: Collection[int] = ()) -> Tensor:
    """Return the share of private tokens that stand at their place in the guess.

    Shapes:
        guess: (..., L'), shorter or longer ones as they are
        truth: (..., L)
        returns: (...) float64, on the CPU; 1 for a text without tokens
    """
    guess, truth = guess.cpu(), truth.cpu()
    missing = truth.shape[-1] - guess.shape[-1]
    guess = torch.nn.functional.pad(guess, (0, max(0, missing)), value=-1)
    counts = _counts(truth, special)
    same = (guess[..., : truth.shape[-1]] == truth) & counts
    num = counts.sum(dim=-1).expand(same.shape[:-1]).double()
    return torch.where(num > 0, same.sum(dim=-1) / num.clamp_min(1), 1.0)


def exact_match(guess: Tensor, truth: Tensor, *, special: Collection[int] = ()) -> Tensor:
    """Return whether the guess is the text, token by token.

    Shapes:
        guess: (B, L')
        truth: (B, L)
        returns: (B,) bool
    """
    pairs = zip(_texts(guess, special), _texts(truth, special), strict=True)
    return torch.tensor([one == other for one, other in pairs], dtype=torch.bool)


def bag_recall(guess: Tensor, truth: Tensor, *, special: Collection[int] = ()) -> Tensor:
    """Return the share of private tokens that the guess holds, each counted once, in any order.

    Shapes:
        guess: (B, L')
        truth: (B, L)
        returns: (B,) float64; 1 for a text without tokens
    """
    pairs = zip(_texts(guess, special), _texts(truth, special), strict=True)
    return torch.tensor([_bag_recall(*pair) for pair in pairs], dtype=torch.float64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Rouge:
    """F-measures, one per text, (B,) float64.

    Attributes:
        one: Of single tokens.
        two: Of pairs of tokens that follow each other.
        longest: Of the longest common subsequence.
    """

    one: Tensor
    two: Tensor
    longest: Tensor


def rouge(guess: Tensor, truth: Tensor, *, special: Collection[int] = ()) -> Rouge:
    """Return ROUGE-1, -2 and -L of each guess.

    Shapes:
        guess: (B, L')
        truth: (B, L)
    """
    from torchmetrics.functional.text.rouge import rouge_score  # importing it takes a while

    keys = ("rouge1", "rouge2", "rougeL")
    values: dict[str, list[float]] = {key: [] for key in keys}
    for pair in zip(_texts(guess, special), _texts(truth, special), strict=True):
        said, meant = (" ".join(map(str, tokens)) for tokens in pair)
        found = rouge_score(said, meant, rouge_keys=keys)
        for key in keys:
            values[key].append(float(found[f"{key}_fmeasure"]))
    one, two, longest = (torch.tensor(values[key], dtype=torch.float64) for key in keys)
    return Rouge(one=one, two=two, longest=longest)


def match_texts(
    guesses: Tensor, truths: Tensor, *, special: Collection[int] = ()
) -> list[tuple[int, int]]:
    """Pair guesses with private texts one to one, so that the most tokens are in their places.

    Every text weighs the same; among pairings that are equal in this, the one is taken in which
    the guesses hold the most private tokens in any order.

    Args:
        guesses: Shape (G, L').
        truths: Shape (T, L).
        special: Tokens that count for nothing.

    Returns:
        min(G, T) pairs (truth, guess), in order of truth.
    """
    placed = token_accuracy(guesses[None], truths[:, None], special=special)
    said, meant = _texts(guesses, special), _texts(truths, special)
    held = [[_bag_recall(guess, truth) for guess in said] for truth in meant]
    return match_by(-placed - _TIE * torch.tensor(held, dtype=torch.float64).view_as(placed))


def unigram_texts(
    sample: Tensor, num: int, *, length: int, special: Collection[int] = (), rng: torch.Generator
) -> Tensor:
    """Return texts of tokens drawn as often as a public sample has them, (num, length).

    Args:
        sample: Public texts, (N, L).
        num: How many.
        length: Tokens of each.
        special: Tokens that are never drawn.
        rng: A CPU generator.

    Raises:
        ValueError: The sample holds no token that may be drawn.
    """
    tokens = _public_tokens(sample, special)
    return tokens[torch.randint(len(tokens), (num, length), generator=rng)]


def typical_text(sample: Tensor, *, length: int, special: Collection[int] = ()) -> Tensor:
    """Return the best single guess at any text, (length,): each place's most frequent token.

    Places that no text of the sample reaches get the most frequent token of all.

    Args:
        sample: Public texts, (N, L).
        length: Tokens of the guess.
        special: Tokens that are never guessed.

    Raises:
        ValueError: The sample holds no token that may be guessed.
    """
    usual = _public_tokens(sample, special).mode().values
    found = usual.repeat(length)
    sample = sample.cpu()
    counts = _counts(sample, special)
    for place in range(min(length, sample.shape[1])):
        here = sample[counts[:, place], place]
        if len(here):
            found[place] = here.mode().values
    return found


def _counts(tokens: Tensor, special: Collection[int]) -> Tensor:
    """Return which tokens count, shaped like them."""
    without = torch.tensor(sorted(special), dtype=tokens.dtype)
    return ~torch.isin(tokens, without)


def _texts(tokens: Tensor, special: Collection[int]) -> list[list[int]]:
    """Return what counts of each text."""
    return [[one for one in text if one not in special] for text in tokens.tolist()]


def _bag_recall(guess: list[int], truth: list[int]) -> float:
    held = Counter(guess) & Counter(truth)
    return held.total() / len(truth) if truth else 1.0


def _public_tokens(sample: Tensor, special: Collection[int]) -> Tensor:
    sample = sample.cpu()
    tokens = sample[_counts(sample, special)]
    if not len(tokens):
        raise ValueError("the public sample holds no token but special ones")
    return tokens
