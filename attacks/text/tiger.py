"""TIGER (Kalikman et al., 2026, https://arxiv.org/abs/2606.18312): sentences under noise.

Noise, rounding or several local steps fill the space that the span check of DAGER needs empty. A
token of the batch is then not in the span, but nearer to it than others; and what all tokens of a
sentence make of each other must be near the spans of later layers, too. So embeddings are moved by
gradient descent to where they are nearest to all spans together, and read as tokens.

Differs from the paper: a span has no edge here, each direction counts the less the more the
gradient is made of it, with the noise as the measure; embeddings are moved between those of the
tokens that are nearest to the first span, at each position, as a vector in the span need be no
token's; and the sentence read is improved by changing one token after the other.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    Snapshot,
    only,
)
from attacks.text.dager import PROVED, conclusion
from attacks.text.evidence import Evidence, evidence_of, padded
from attacks.text.language import LanguageModel, text_known
from attacks.text.span import Site, given_to, spectrum
from attacks.threats import WHITE_BOX

_AT_ONCE = 4_000_000
_SWEEPS = 4
_FLOOR = 1e-7
"""The least noise, over the largest singular value: that of single precision."""
_SNAPSHOTS = 10


@dataclass(frozen=True, kw_only=True, eq=False)
class _SoftSpan:
    """How far vectors are from what a gradient under noise is made of.

    Attributes:
        site: Whose gradient.
        directions: (D, D).
        weights: How little of the gradient lies along each: noise^2 / (strength^2 + noise^2), (D,).
    """

    site: Site
    directions: Tensor
    weights: Tensor

    def distance(self, vectors: Tensor) -> Tensor:
        """Return squared relative distances of vectors (..., D), (...)."""
        along = (vectors @ self.directions.to(vectors)).square()
        return (along @ self.weights.to(vectors)) / along.sum(dim=-1).clamp_min(1e-30)


@dataclass(frozen=True, kw_only=True)
class TIGER:
    """Find the sentences that are nearest to all spans of a noisy gradient.

    Attributes:
        steps: Steps of Adam.
        step_size: Of shares' logarithms.
        candidates: Tokens that are tried at each position.
        starts: Random starts for each example.
    """

    steps: int = 100
    step_size: float = 0.2
    candidates: int = 16
    starts: int = 4

    needs = WHITE_BOX

    def __post_init__(self) -> None:
        """Refuse settings that mean nothing."""
        if min(self.steps, self.starts) < 1 or self.candidates < 2 or self.step_size <= 0:
            raise ValueError(
                "steps and starts must be at least 1, candidates at least 2 and step_size above "
                f"0, got {self.steps}, {self.starts}, {self.candidates} and {self.step_size}"
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
        """Guess the batch behind one update.

        Shapes:
            returns .inputs: tokens (b, T), b at most B
            returns .labels: (b,) classes, else None

        Raises:
            AttackFailed: Not what is needed was heard, or there are as many tokens as embeddings
                are wide.
        """
        start = time.monotonic()
        budget = budget or Budget()
        seen = only(seen)
        evidence = evidence_of(seen, known)
        length = evidence.reach
        if evidence.tokens.head == "causal":
            length = min(length, evidence.length - 1)  # the last token moves nothing
        rank = evidence.batch_size * length
        first = _soft(evidence.first[0], rank)
        deep = [_soft(site, rank) for site, _ in evidence.deep]
        pools = self._pools(evidence, first, length)
        spans = [first, *deep]
        snapshots: list[Snapshot] = []
        shares, steps = self._moved(evidence, spans, pools, rng, budget, snapshots)
        sentences = pools.gather(1, shares.argmax(dim=2).T).T
        sentences, scores = _improved(evidence, spans, pools, sentences, budget)
        chosen = _different(sentences, scores, evidence.batch_size)
        inputs, labels, misfit = conclusion(evidence, seen, known, chosen)
        return Reconstruction(
            inputs=inputs,
            labels=labels,
            matching_loss=float(scores.min()),
            steps=steps,
            seconds=time.monotonic() - start,
            finished=not budget.spent,
            certified=torch.full((len(inputs),), misfit is not None and misfit <= PROVED),
            snapshots=tuple(snapshots),
            notes={} if misfit is None else {"tokens_distance": misfit},
        )

    def _pools(self, evidence: Evidence, span: _SoftSpan, length: int) -> Tensor:
        """Return the tokens nearest to the first span, (positions, candidates)."""
        tokens = evidence.tokens
        vocabulary = torch.arange(tokens.vocabulary_size, device=evidence.device)
        found = []
        for some in torch.split(vocabulary, max(1, _AT_ONCE // (length * span.site.width))):
            with torch.no_grad():
                sentences = some[:, None].repeat(1, length)
                (given,) = given_to([span.site.module], evidence.model, sentences)
                found.append(span.distance(given))
        distances = torch.cat(found).T.contiguous()
        distances[:, tokens.pad] = torch.inf
        most = min(self.candidates, tokens.vocabulary_size - 1)
        return distances.topk(most, dim=1, largest=False).indices

    def _moved(
        self,
        evidence: Evidence,
        spans: list[_SoftSpan],
        pools: Tensor,
        rng: torch.Generator,
        budget: Budget,
        snapshots: list[Snapshot],
    ) -> tuple[Tensor, int]:
        """Return shares of the candidates, (starts, positions, candidates), and steps taken."""
        embedding = cast(LanguageModel, evidence.model).token_embedding
        choices = embedding.weight.detach()[pools]
        starts = self.starts * evidence.batch_size
        logits = torch.randn(starts, *pools.shape, generator=rng).to(choices).requires_grad_()
        optimizer = torch.optim.Adam([logits], lr=self.step_size)
        for parameter in evidence.model.parameters():
            parameter.requires_grad_(False)
        step = 0
        while step < self.steps and not budget.spent:
            with torch.enable_grad():
                shares = logits.softmax(dim=2)
                mixed = torch.einsum("spc,pcd->spd", shares, choices)
                loss = _losses(evidence, spans, mixed)
                (slope,) = torch.autograd.grad(loss.sum(), logits)
            loss = loss.detach()
            if step % max(1, self.steps // _SNAPSHOTS) == 0:
                best = loss.argsort()[: evidence.batch_size]
                read = pools.gather(1, shares.argmax(dim=2).T).T[best]
                guess = padded(read.tolist(), evidence.length, evidence.tokens.pad)
                snapshots.append(Snapshot(step=step, inputs=guess, matching_loss=float(loss.min())))
            logits.grad = slope
            optimizer.step()
            step += 1
        for parameter in evidence.model.parameters():
            parameter.requires_grad_(True)
        return logits.detach().softmax(dim=2), step


def _soft(site: Site, rank: int) -> _SoftSpan:
    """Return the span of a gradient under noise, which is what it has beyond its rank.

    Raises:
        AttackFailed: There are as many tokens as it has dimensions.
    """
    if rank >= min(site.gradient.shape):
        raise AttackFailed(
            f"up to {rank} tokens are behind the gradient of {', '.join(site.names)}, which tells "
            f"fewer than {min(site.gradient.shape)}: nothing is left that is noise alone"
        )
    directions, values = spectrum(site.gradient)
    noise = max(float(values[rank]), _FLOOR * float(values[0]))
    return _SoftSpan(
        site=site, directions=directions, weights=noise**2 / (values.square() + noise**2)
    )


def _losses(evidence: Evidence, spans: list[_SoftSpan], sentences: Tensor) -> Tensor:
    """Return how far tokens (N, n) or embeddings (N, n, D) are from the spans, (N,)."""
    given = given_to([span.site.module for span in spans], evidence.model, sentences)
    parts = [
        (span.distance(one) + _FLOOR).log().mean(dim=1)
        for span, one in zip(spans, given, strict=True)
    ]
    return torch.stack(parts).mean(dim=0)


def _improved(
    evidence: Evidence, spans: list[_SoftSpan], pools: Tensor, sentences: Tensor, budget: Budget
) -> tuple[Tensor, Tensor]:
    """Change one token after the other for the best candidate; return sentences and losses."""
    sentences = sentences.clone()
    number, most = len(sentences), pools.shape[1]
    with torch.no_grad():
        losses = _losses(evidence, spans, sentences)
        for _ in range(_SWEEPS):
            before = losses
            for place, pool in enumerate(pools):
                if budget.spent:
                    break
                others = sentences.repeat_interleave(most, dim=0)
                others[:, place] = pool.repeat(number)
                found = _losses(evidence, spans, others).view(number, most)
                losses, best = found.min(dim=1)
                better = pool[best]
                sentences[:, place] = better
            if budget.spent or bool((losses >= before - 1e-6).all()):
                break
    return sentences, losses


def _different(sentences: Tensor, losses: Tensor, number: int) -> list[list[int]]:
    """Return the best sentences that differ in half of their tokens, then the best others."""
    chosen: list[list[int]] = []
    rest: list[list[int]] = []
    for place in losses.argsort().tolist():
        sentence = sentences[place].tolist()
        if sentence in chosen or sentence in rest:
            continue
        far = all(
            2 * sum(a == b for a, b in zip(sentence, other, strict=True)) <= len(other) + 2
            for other in chosen
        )
        (chosen if far else rest).append(sentence)
    return (chosen + rest)[:number]
