"""LAMP (Balunovic et al., NeurIPS 2022, https://arxiv.org/abs/2202.08827).

Matching on embeddings that are kept as long as those of tokens, in turns with changes of the order
of tokens (two swapped, one moved, a prefix moved to the end): of many proposed, the one is taken
that lowers the matching distance plus what a language model says of the text. Differs from the
paper: the logarithm of the distance is weighed against nats per token, since distances differ by
orders of magnitude between models and rounds, and a weight that suits one lets the other override
the gradient; the language model counts n-grams in public text (`attacks.text.ngram`) unless one is
given; fewer starts are compared and fewer changes proposed, for speed; and what
`attacks.text.dlg_text` says of labels and of the end of the search.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, cast

import torch
from torch import Tensor

from attacks.observation import AttackFailed, Knowledge
from attacks.settings import require_choice, require_counts, require_positive, require_weights
from attacks.text.embedding_matching import EmbeddingMatching, Search, cosine
from attacks.text.ngram import ngrams_of
from attacks.text.predictions import Prediction
from attacks.text.tag import squared_and_absolute
from attacks.text.victim import TextVictim
from attacks.threats import Capability

_LEAST = 1e-12
"""A matching distance that counts as none."""

LanguagePrior = Callable[[Tensor], Tensor]
"""Texts (N, T), int64 -> the mean negative log-likelihood per token of each, in nats, (N,)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GuidedSearch(Search):
    """A restart that a language model guides.

    Attributes:
        prior: The model.
    """

    prior: LanguagePrior


@dataclass(frozen=True, kw_only=True)
class LAMP(EmbeddingMatching):
    """Find tokens whose gradient is the one heard, in turns with orders a language model likes.

    Attributes:
        steps: Adam steps of a restart.
        step_size: First step.
        decay: Factor of the step size, every 50 steps.
        starts: Random embeddings of which a restart takes the nearest; the paper has 500.
        matching: Whether gradients are compared by "cosine" or by "l1-l2" distance, as TAG.
        absolute_weight: Weight of the absolute distance in the latter.
        norm_weight: Weight of the squared difference between the mean length of the embeddings
            guessed and of those of all tokens.
        language_weight: Weight of the nats per token against the logarithm of the matching
            distance.
        order: Of the n-grams.
        moves: Changes of order proposed at a time; the paper has 200.
        moves_every: Steps between two proposals.
        burn_in: Share of the steps before the first.
        prior: A language model in place of n-grams; then no public text is needed.
    """

    steps: int = 2_000
    step_size: float = 0.01
    decay: float = 0.89
    starts: int = 50
    matching: Literal["cosine", "l1-l2"] = "cosine"
    absolute_weight: float = 0.01
    norm_weight: float = 1.0
    language_weight: float = 0.2
    order: int = 3
    moves: int = 50
    moves_every: int = 75
    burn_in: float = 0.1
    prior: LanguagePrior | None = None

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        super().__post_init__()
        require_counts(self, "starts", "order", "moves_every")
        require_counts(self, "moves", least=0)
        require_positive(self, "decay")
        require_weights(self, "absolute_weight", "norm_weight", "language_weight", "burn_in")
        require_choice(self, "matching", "cosine", "l1-l2")

    @property
    def needs(self) -> frozenset[Capability]:
        """As other matching attacks, and public text, unless a language model is given."""
        return super().needs | (frozenset() if self.prior else {Capability.PUBLIC_SAMPLE})

    def distance(self, found: Mapping[str, Tensor], victim: TextVictim) -> Tensor:
        """Return the cosine distance, or TAG's with all tensors alike."""
        if self.matching == "cosine":
            return cosine(found, victim)
        return squared_and_absolute(
            found, victim, absolute_weight=self.absolute_weight, falling=False
        )

    def beyond(self, search: Search, embeddings: Tensor) -> Tensor:
        """Return the penalty on embeddings that are longer or shorter than those of tokens."""
        found = embeddings[search.free].norm(dim=1).mean()
        usual = search.victim.table.norm(dim=1).mean()
        apart: Tensor = found - usual
        return self.norm_weight * apart.square()

    def rate(self, step: int) -> float:
        """Fall every 50 steps."""
        return float(self.decay ** (step // 50))

    def begin(
        self,
        victim: TextVictim,
        prediction: Prediction,
        candidates: Tensor,
        known: Knowledge,
        *,
        rng: torch.Generator,
    ) -> GuidedSearch:
        """Return the nearest of several random starts."""
        drawn = [
            EmbeddingMatching.begin(self, victim, prediction, candidates, known, rng=rng)
            for _ in range(self.starts)
        ]
        values = [self._value(one) for one in drawn]
        best = drawn[min(range(len(drawn)), key=values.__getitem__)]
        own = {one.name: getattr(best, one.name) for one in fields(Search)}
        return GuidedSearch(**own, prior=self.prior or self._counted(known))

    def between(self, step: int, search: Search) -> None:
        """Put the embeddings into a better order, if one is found."""
        if not self.moves or step < self.burn_in * self.steps or step % self.moves_every:
            return
        search = cast(GuidedSearch, search)
        # What is known, as a masked place is, stays where it is.
        spots = [torch.nonzero(row).flatten() for row in search.free]
        held, tokens = search.embeddings.detach(), search.read(self.read_out)
        best, least = held, self._worth(search, tokens)
        for _ in range(self.moves):
            moved, said = held.clone(), tokens.clone()
            for row, some in enumerate(spots):
                order = changed_order(len(some), search.rng).to(some.device)
                moved[row, some] = held[row, some[order]]
                said[row, some] = tokens[row, some[order]]
            worth = self._worth(replace(search, embeddings=moved), said)
            if worth < least:
                best, least = moved, worth
        with torch.no_grad():
            search.embeddings.copy_(best.clone())

    def _worth(self, search: GuidedSearch, tokens: Tensor) -> float:
        """Return what weighs matching and language, of embeddings and the tokens they are."""
        sentence = search.prediction.harden(tokens, search.variables).sentence
        nats = float(search.prior(sentence).mean())
        return math.log(max(self._value(search), _LEAST)) + self.language_weight * nats

    def _value(self, search: Search) -> float:
        return float(self.objective(search, differentiable=False).detach())

    def _counted(self, known: Knowledge) -> LanguagePrior:
        if known.public_sample is None or known.tokens is None:
            raise AttackFailed(
                "LAMP's language model is counted in public text; grant 'public-sample'"
            )
        counted = ngrams_of(known.public_sample, known.tokens, order=self.order)
        return lambda texts: torch.tensor([counted.nats(text) for text in texts.tolist()])


def changed_order(length: int, rng: torch.Generator) -> Tensor:
    """Return the places (length,) that tokens are taken from, after one change at random.

    Two are swapped, or one is moved elsewhere, or all before some place are moved to the end.
    """
    order = list(range(length))
    if length < 2:
        return torch.tensor(order, dtype=torch.int64)
    kind = int(torch.randint(3, (), generator=rng))
    one, other = (int(place) for place in torch.randperm(length, generator=rng)[:2])
    if kind == 0:
        order[one], order[other] = order[other], order[one]
    elif kind == 1:
        order.insert(other, order.pop(one))
    else:
        place = max(one, other)
        order = order[place:] + order[:place]
    return torch.tensor(order)
