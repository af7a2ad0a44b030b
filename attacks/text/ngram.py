"""How likely a sequence of tokens is, by counting n-grams in public text. No paper.

Interpolated Witten-Bell smoothing (1991, IEEE Transactions on Information Theory 37): after a
context that was seen n times with t different tokens, a token counts what it was seen, plus t times
its probability after the shorter context, over n + t. The shortest context knows all tokens alike.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from attacks.text.tokens import Tokens


@dataclass(frozen=True, kw_only=True, eq=False)
class NGrams:
    """Counts of tokens after contexts of up to `order` - 1 tokens.

    Attributes:
        order: The longest run of tokens that is counted.
        vocabulary_size: V.
        followers: How often each token was seen after each context.
    """

    order: int
    vocabulary_size: int
    followers: dict[tuple[int, ...], Counter[int]]

    def nats(self, tokens: Sequence[int]) -> float:
        """Return the mean negative log-likelihood of a token after the first, in nats."""
        if len(tokens) < 2:
            return 0.0
        total = -sum(
            math.log(self.chance(tokens[max(0, place - self.order + 1) : place], tokens[place]))
            for place in range(1, len(tokens))
        )
        return total / (len(tokens) - 1)

    def chance(self, context: Sequence[int], token: int) -> float:
        """Return the probability of a token after a context of at most `order` - 1 tokens."""
        found = 1 / self.vocabulary_size
        for length in range(len(context) + 1):
            seen = self.followers.get(tuple(context[len(context) - length :]))
            if seen is None:
                break
            different = len(seen)
            found = (seen[token] + different * found) / (seen.total() + different)
        return found


def count_ngrams(texts: Iterable[Sequence[int]], *, order: int, vocabulary_size: int) -> NGrams:
    """Count the n-grams of sequences of tokens."""
    followers: dict[tuple[int, ...], Counter[int]] = defaultdict(Counter)
    for text in texts:
        for place, token in enumerate(text):
            for length in range(min(place, order - 1) + 1):
                followers[tuple(text[place - length : place])][token] += 1
    return NGrams(order=order, vocabulary_size=vocabulary_size, followers=dict(followers))


def ngrams_of(sample: Tensor, tokens: Tokens, *, order: int) -> NGrams:
    """Count the n-grams of public texts (N, T), padded."""
    texts = [[one for one in row if one != tokens.pad] for row in sample.tolist()]
    return count_ngrams(texts, order=order, vocabulary_size=tokens.vocabulary_size)
