"""DAGER (Petrov et al., NeurIPS 2024, https://arxiv.org/abs/2405.15586): sentences read exactly.

While a batch has fewer tokens than embeddings are wide, the gradient of the first attention's
projections spans what those were given, and every token of the vocabulary is tried at every
position: which lie in that span (`attacks.text.span`). Sentences are put together from the tokens
found, and checked in the same way where the first block has mixed them. A decoder's are built from
left to right; an encoder's, where every position sees all others, by least squares.

Differs from the paper: query, key and value are read as one, and what a layer is given is found by
running the model, so that any architecture and adapters will do; a distance is judged by the one to
expect, as the gradient's weak directions are known less well, where the paper has fixed thresholds;
the other layers of the first block check sentences, too; an encoder's are put together
(`attacks.text.assembly`), not enumerated; labels are read off the last layer
(`attacks.text.labels`), among them the last token of a causal model's sentence and the masked ones
of an encoder's, which no span tells; and the guess is proved by recomputing the gradient.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    only,
)
from attacks.text.assembly import FITS, gathered, improved, sieved, without
from attacks.text.evidence import Evidence, evidence_of, padded
from attacks.text.labels import misfit_of, read_labels
from attacks.text.language import text_known
from attacks.text.tokens import IGNORED
from attacks.threats import WHITE_BOX

PROVED = 1e-4
"""Relative error of the recomputed gradient up to which a guess is proved."""
_NEAR = 1_000
"""So many of the smallest distances may be those of tokens of the batch and of their mixtures."""
_CLEAR = 3.0
"""Tokens of the batch are nearer by this factor than the others."""
_FITS = 0.7
"""Misfit of a position, see `Evidence.misfit`, up to which it is one of a sentence of the batch."""
_TURN = 4
"""Starts for sentences of one length before it is the next one's turn."""


@dataclass(frozen=True, kw_only=True)
class DAGER:
    """Read all sentences of a batch off the spans of its gradient.

    Attributes:
        tolerance: Relative distance to the first span up to which a token is one of the batch;
            0 takes it from the distances.
        beam: Sentences that are kept at each position of a decoder.
        restarts: Most tokens that an encoder's sentences are searched for from.
    """

    tolerance: float = 0.0
    beam: int = 512
    restarts: int = 24

    needs = WHITE_BOX

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if self.tolerance < 0 or self.beam < 1 or self.restarts < 1:
            raise ValueError(
                "tolerance must be at least 0, beam and restarts at least 1, got "
                f"{self.tolerance}, {self.beam} and {self.restarts}"
            )

    def check(self, known: Knowledge) -> None:
        """Refuse tasks that are no text."""
        text_known(known)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Read the batch behind one update.

        Shapes:
            returns .inputs: tokens (b, T), b at most B
            returns .labels: (b,) classes, else None

        Raises:
            AttackFailed: The gradient's space is full, by too many tokens or by noise, or not what
                is needed was heard.
        """
        start = time.monotonic()
        budget = budget or Budget()
        seen = only(seen)
        evidence = evidence_of(seen, known)
        pools = tokens_in_span(evidence, self.tolerance)
        if evidence.causal:
            sentences, finished = self._from_left_to_right(evidence, pools, budget)
        else:
            sentences, finished = self._searched(evidence, pools, rng, budget)
        if not sentences:
            raise AttackFailed(
                f"{sum(map(len, pools))} tokens lie in the span of the first attention, but no "
                "sentence of them fits the layers behind it"
            )
        inputs, labels, misfit = conclusion(evidence, seen, known, sentences)
        proved = misfit is not None and misfit <= PROVED
        return Reconstruction(
            inputs=inputs,
            labels=labels,
            matching_loss=misfit,
            seconds=time.monotonic() - start,
            finished=finished,
            certified=torch.full((len(inputs),), proved),
            notes={
                "rank": float(evidence.first[1].rank),
                "tokens in span": float(sum(map(len, pools))),
                "sentences": float(len(sentences)),
                **({} if misfit is None else {"tokens_distance": misfit}),
            },
        )

    def _from_left_to_right(
        self, evidence: Evidence, pools: list[Tensor], budget: Budget
    ) -> tuple[list[list[int]], bool]:
        """Return the sentences of a decoder: extended as long as something fits."""
        _require_deep(evidence, pools)
        prefixes = pools[0][:, None]
        scores = torch.zeros(len(prefixes), device=prefixes.device)
        if evidence.deep:
            scores = evidence.misfit(prefixes)[:, 0]
            prefixes, scores = prefixes[scores <= _FITS], scores[scores <= _FITS]
        done: list[tuple[float, list[int]]] = []
        for position in range(1, len(pools)):
            if not len(prefixes) or budget.spent:
                break
            pool = pools[position]
            longer = torch.cat(
                [
                    prefixes.repeat_interleave(len(pool), dim=0),
                    pool.repeat(len(prefixes))[:, None],
                ],
                dim=1,
            )
            misfit = scores.new_zeros(len(longer))
            if evidence.deep:
                misfit = evidence.misfit(longer)[:, -1]
            fits = (misfit <= _FITS).view(len(prefixes), len(pool))
            for place in (~fits.any(dim=1)).nonzero()[:, 0].tolist():
                done.append((float(scores[place]), prefixes[place].tolist()))
            total = scores.repeat_interleave(len(pool)) * (position / (position + 1))
            total = total + misfit / (position + 1)
            kept = fits.flatten().nonzero()[:, 0]
            kept = kept[total[kept].argsort()[: self.beam]]
            prefixes, scores = longer[kept], total[kept]
        done += zip(scores.tolist(), prefixes.tolist(), strict=True)
        return _best(done, evidence.batch_size), not budget.spent

    def _searched(
        self, evidence: Evidence, pools: list[Tensor], rng: torch.Generator, budget: Budget
    ) -> tuple[list[list[int]], bool]:
        """Return the sentences of an encoder: those that fit best, from tokens that seem sure."""
        _require_deep(evidence, pools)
        found: list[tuple[float, list[int]]] = []
        open_ = []  # lengths of which there may be more sentences
        for own in _lengths(evidence, pools):
            if all(len(pool) == 1 for pool in own):
                lone = torch.cat(own)[None]
                score = float(evidence.misfit(lone).mean()) if evidence.deep else 0.0
                found.append((score, lone[0].tolist()))
            else:
                open_.append((own, *sieved(evidence, own, rng)))
        for _ in range(-(-self.restarts // _TURN)):
            for own, few, seeds in open_:
                tried = 0
                while seeds and tried < _TURN:
                    fitting = [one for score, one in _distinct(found) if score <= FITS]
                    if len(fitting) >= evidence.batch_size or budget.spent:
                        return _best(found, evidence.batch_size), not budget.spent
                    place, token = seeds.pop(0)
                    if any(len(one) == len(own) and one[place] == token for one in fitting):
                        continue
                    tried += 1
                    sentence = gathered(evidence, few, place, token, rng)
                    found.append(improved(evidence, own, sentence, budget))
                    if found[-1][0] > FITS and fitting and not budget.spent:
                        rest = without(own, fitting, evidence.tokens.special)
                        sentence = gathered(evidence, rest, place, token, rng)
                        found.append(improved(evidence, own, sentence, budget))
        return _best(found, evidence.batch_size), not budget.spent


def tokens_in_span(evidence: Evidence, tolerance: float) -> list[Tensor]:
    """Return, for each position from the first, the tokens that lie in the first span.

    Raises:
        AttackFailed: They are not told from others.
    """
    if evidence.first[1].full and not evidence.rough:
        raise AttackFailed(_full(evidence))
    distances = evidence.token_distances(evidence.reach)
    if not tolerance:
        near = min(_NEAR, distances.numel() // 4)
        tolerance = float(distances.flatten().kthvalue(near).values) / _CLEAR
    told = distances.amin(dim=1) <= tolerance
    if not bool(told[0]):
        raise AttackFailed(_full(evidence))
    reach = int((told.long().cumprod(dim=0)).sum())
    return [torch.nonzero(row <= tolerance)[:, 0] for row in distances[:reach]]


def _full(evidence: Evidence) -> str:
    site, _ = evidence.first
    return (
        f"no token is told from the others: the gradient of {', '.join(site.names)} spans all of "
        f"{min(site.gradient.shape)} dimensions, by as many different tokens "
        f"({evidence.batch_size} examples of up to {evidence.length}) or by noise. The span check "
        "needs fewer tokens than embeddings are wide (than the rank of an adapter) and an exact "
        "gradient; 'tiger' bears some noise"
    )


def conclusion(
    evidence: Evidence, seen: Observation, known: Knowledge, sentences: list[list[int]]
) -> tuple[Tensor, Tensor | None, float | None]:
    """Complete sentences by what labels tell; recompute the gradient.

    Returns:
        Tokens (b, T); classes (b,) or None; the relative error of the recomputed gradient, None if
        it cannot be recomputed.
    """
    tokens = evidence.tokens
    inputs = padded(sentences, evidence.length, tokens.pad).to(evidence.device)
    labels = read_labels(evidence, known, inputs)
    if labels is None:
        return inputs, None, None
    if tokens.head == "causal":  # the last token is a label alone
        lengths = (inputs != tokens.pad).sum(dim=1)
        for row, label, length in zip(inputs, labels, lengths.tolist(), strict=True):
            if length < evidence.length:
                row[length] = label[length - 1]
    misfit = misfit_of(evidence, seen, known, inputs, labels)
    if tokens.head == "classes":
        return inputs, labels, misfit
    if tokens.head == "masked":
        inputs = torch.where(labels == IGNORED, inputs, labels)
    return inputs, None, misfit


def _require_deep(evidence: Evidence, pools: list[Tensor]) -> None:
    """Refuse to put sentences together where nothing tells which tokens belong to one.

    Raises:
        AttackFailed: There are several choices, and no layer behind the first attention was heard.
    """
    if not evidence.deep and any(len(pool) > 1 for pool in pools):
        raise AttackFailed(
            f"{sum(map(len, pools))} tokens lie in the span of the first attention, and no layer "
            "behind it was heard that tells which of them are one sentence"
        )


def _lengths(evidence: Evidence, pools: list[Tensor]) -> list[list[Tensor]]:
    """Return, for each length that sentences can have, the tokens at every position.

    Special tokens stand where they belong: the first at the start, the last at the end.
    """
    tokens = evidence.tokens
    outer = {one for one in (tokens.start, tokens.end) if one is not None}

    def inner(pool: Tensor) -> Tensor:
        keep = torch.ones_like(pool, dtype=torch.bool)
        for one in outer:
            keep &= pool != one
        return pool[keep]

    found = []
    for length in range(1, len(pools) + 1):
        own = [inner(pool) for pool in pools[:length]]
        for token, place in ((tokens.start, 0), (tokens.end, length - 1)):
            if token is not None:
                own[place] = pools[place][pools[place] == token]
        if all(len(pool) for pool in own):
            found.append(own)
    if tokens.end is None:  # the end shows nowhere: as long as the longest
        found = found[-1:]
    return found[::-1]


def _distinct(found: list[tuple[float, list[int]]]) -> list[tuple[float, list[int]]]:
    """Return the sentences found, each once, the best first."""
    best: dict[tuple[int, ...], float] = {}
    for score, sentence in found:
        key = tuple(sentence)
        best[key] = min(score, best.get(key, score))
    return sorted((score, list(key)) for key, score in best.items())


def _best(found: list[tuple[float, list[int]]], number: int) -> list[list[int]]:
    return [sentence for _, sentence in _distinct(found)[:number]]
