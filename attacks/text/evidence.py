"""What an update of a language model tells of the tokens behind it, position by position."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from attacks.network import with_weights
from attacks.observation import (
    AttackFailed,
    Kind,
    Knowledge,
    Observation,
    Tensors,
    delta_of,
    pseudo_gradient_of,
)
from attacks.text.language import LanguageModel, num_tokens_heard, text_known
from attacks.text.span import Site, Span, given_to, sites_of, span_of
from attacks.text.tokens import Tokens

_AT_ONCE = 4_000_000
"""Entries of embeddings computed together."""
_DEEP = 3
"""Layers behind the first attention that a sentence is checked at."""
_WHOLE = 0.9
"""Share of the first span's dimensions below which a layer does not tell all positions."""
_CERTAIN = 0.1
"""A distance below this share of the one to expect is no better than one at it."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Evidence:
    """The spans that tokens and sentences must fit into.

    Attributes:
        model: With the weights in force, in evaluation mode.
        tokens: Of the task.
        heard: The gradient, or the pseudo-gradient of several steps, by parameter name.
        visible: Which of its coordinates were heard; None if all.
        first: Where each vector depends on one token alone, and the space of those vectors.
        deep: Where tokens were mixed, and the spaces there, in the order they run: of layers at
            which every position has a gradient.
        last: The last layer that was heard, apart from one with an output per token; None if
            there is none after the first attention.
        length: T.
        reach: Positions that some token with a gradient stands at; T where that was not heard.
        batch_size: B.
        scaled: Whether `heard` is known in size, not only up to a factor.
        rough: Whether it is a difference of weights, of which several steps and the rounding of
            weights fill the whole space a little.
    """

    model: nn.Module
    tokens: Tokens
    heard: Tensors
    visible: Tensors | None
    first: tuple[Site, Span]
    deep: tuple[tuple[Site, Span], ...]
    last: Site | None
    length: int
    reach: int
    batch_size: int
    scaled: bool
    rough: bool

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def causal(self) -> bool:
        """Whether a token attends to those before it alone."""
        return cast(LanguageModel, self.model).causal

    def token_distances(self, positions: int) -> Tensor:
        """Return how far each token at each position is from the first span, (positions, V).

        Special tokens count, but for the pad: it has no gradient.
        """
        site, span = self.first
        vocabulary = torch.arange(self.tokens.vocabulary_size, device=self.device)
        found = []
        for some in torch.split(vocabulary, max(1, _AT_ONCE // (positions * site.width))):
            with torch.no_grad():
                (given,) = given_to([site.module], self.model, some[:, None].repeat(1, positions))
                found.append(span.distance(given))
        distances = torch.cat(found).T.contiguous()
        distances[:, self.tokens.pad] = torch.inf
        return distances

    def misfit(self, sentences: Tensor) -> Tensor:
        """Return how badly what sentences (N, n) make of themselves fits the deep spans, (N, n).

        The distance over the one to expect, on a logarithmic scale, the mean of the sites: far
        below 1 for a position of a sentence of the batch.
        """
        modules = [site.module for site, _ in self.deep]
        width = max(site.width for site, _ in self.deep)
        found = []
        for some in torch.split(sentences, max(1, _AT_ONCE // (sentences.shape[1] * width))):
            with torch.no_grad():
                given = given_to(modules, self.model, some)
            parts = [
                (span.distance(one) / span.blur(one)).clamp_min(_CERTAIN).log()
                for (_, span), one in zip(self.deep, given, strict=True)
            ]
            found.append(torch.stack(parts).mean(dim=0))
        return torch.cat(found)

    def outside(self, sentences: Tensor) -> list[Tensor]:
        """Return what sentences (N, n) make of themselves outside of each deep span, (N, n, -)."""
        modules = [site.module for site, _ in self.deep]
        width = max(site.width for site, _ in self.deep)
        found: list[list[Tensor]] = [[] for _ in modules]
        for some in torch.split(sentences, max(1, _AT_ONCE // (sentences.shape[1] * width))):
            with torch.no_grad():
                given = given_to(modules, self.model, some)
            for parts, (_, span), one in zip(found, self.deep, given, strict=True):
                parts.append(span.outside(one))
        return [torch.cat(parts) for parts in found]


def _deviation(site: Site, seen: Observation, known: Knowledge) -> float:
    """Return the standard deviation of noise that is known in a site's gradient.

    Of the weights of a site, each divided by its norm, that of the noisiest; between peers, updates
    that follow from what was heard say how far they are off.
    """
    whole = torch.cat([tensor.flatten() for tensor in seen.update.values()])
    size = float(whole.double().square().mean().sqrt())
    deviation = dict.fromkeys(site.names, (seen.expected_error or 0.0) * size)
    if known.noise is not None:
        deviation |= {name: known.noise.deviation.get(name, 0.0) for name in site.names}
    norms = {name: float(seen.update[name].double().norm()) for name in site.names}
    return max(deviation[name] / max(norms[name], 1e-30) for name in site.names)


def evidence_of(seen: Observation, known: Knowledge) -> Evidence:
    """Read the spans off an update.

    Raises:
        AttackFailed: The task is no text, something needed was not heard or granted, or the first
            span is the whole space.
    """
    language, tokens = text_known(known)
    if seen.weights is None:
        raise AttackFailed("the span check needs the weights in force, which were not heard")
    if known.input_shape is None or known.batch_size is None:
        raise AttackFailed("the span check needs the length of an example and the batch size")
    model = with_weights(cast(nn.Module, language), seen.weights, seen.buffers)
    heard, scaled = heard_of(seen, known)
    (length,) = known.input_shape
    device = next(model.parameters()).device
    heard = {name: tensor.to(device) for name, tensor in heard.items()}
    reach = _reach(model, heard, length)
    if not all(bool(tensor.isfinite().all()) for tensor in heard.values()):
        raise AttackFailed("the update heard is not finite")
    plain = [t for t in range(tokens.vocabulary_size) if t not in tokens.special][:2]
    sites = sites_of(model, heard, seen.visible, torch.tensor(plain, device=device), length)
    local = next((site for site in sites if site.local), None)
    if local is None:
        raise AttackFailed(
            "no whole weight of the first attention's query, key or value was heard: nothing "
            "tells the tokens there; an attack that matches gradients makes do with others"
        )
    rough = seen.kind in (Kind.DELTA, Kind.WEIGHTS)
    moved = known.batch_size * reach if rough else None
    span = span_of(local.gradient, _deviation(local, seen, known), moved=moved)
    mixed = [site for site in sites if not site.local]
    deep = [
        (site, span_of(site.gradient, _deviation(site, seen, known), moved=moved))
        for site in mixed
        if site.width == local.width and (site.heeded or tokens.head == "causal")
    ][:_DEEP]
    whole = [one for one in deep if one[1].rank >= _WHOLE * span.rank]
    small = [site for site in mixed if len(site.gradient) != tokens.vocabulary_size]
    return Evidence(
        model=model,
        tokens=tokens,
        heard=heard,
        visible=seen.visible,
        first=(local, span),
        deep=tuple(whole or deep),
        last=small[-1] if small else None,
        length=length,
        reach=reach,
        batch_size=known.batch_size,
        scaled=scaled,
        rough=rough,
    )


def heard_of(seen: Observation, known: Knowledge) -> tuple[dict[str, Tensor], bool]:
    """Return the gradient heard, by name, and whether its size is known.

    Changes of weights span the same space whatever the learning rate; it need not be known.
    """
    changes = seen.kind in (Kind.DELTA, Kind.WEIGHTS)
    if changes and (known.recipe is None or not known.recipe.learning_rate):
        return {name: -delta for name, delta in delta_of(seen).items()}, False
    return pseudo_gradient_of(seen, known.recipe), known.length_known


def _reach(model: nn.Module, heard: Tensors, length: int) -> int:
    embedding = cast(LanguageModel, model).position_embedding
    if embedding is None:
        return length
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    gradient = heard.get(names.get(id(embedding.weight), ""))
    if gradient is None:
        return length
    return min(num_tokens_heard(gradient), length) or length


def padded(sentences: Sequence[Sequence[int]], length: int, pad: int) -> Tensor:
    """Return sentences as one tensor (B, T), filled up with pads."""
    found = torch.full((len(sentences), length), pad)
    for row, sentence in zip(found, sentences, strict=True):
        row[: len(sentence)] = torch.tensor(list(sentence), dtype=torch.int64)
    return found
