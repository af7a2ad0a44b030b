"""Which vectors a linear layer can have been given: those in the row space of its gradient.

The gradient of a weight W (M, D) is a sum over tokens of s x^T, with what each token is given, x,
and the slope of the loss at what the layer makes of it, s. While fewer than D tokens are behind it,
its rows span the space of the x, and any other vector is told from them by its distance to that
space: the span check of DAGER (Petrov et al., 2024, https://arxiv.org/abs/2405.15586).

Layers that are given the same vectors, as query, key and value of attention are, span the same
space, and are read as one: a query at the first position of a decoder has no gradient, its value
has one. What a layer is given is found by running the model, never by a formula: normalisations,
token types and adapters need no word here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from attacks.network import all_visible
from attacks.observation import Tensors
from attacks.text.language import LanguageModel

_MATCHES = 1e-3
"""Relative error up to which a layer's output is its input times its weight."""
_ROUNDING = 3e-7
"""Singular values below this, relative to the largest, are rounding in single precision."""
_MARGIN = 1.2
"""Of the singular values that noise is expected to have."""
_LEFT_OUT = 16
"""At least the width over this are not of the space."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Site:
    """Linear layers that are given the same vectors.

    Attributes:
        module: One of them.
        names: Of their weights, those that were heard.
        gradient: Of those weights, each divided by its norm, one below the other, (M, D) float64.
        local: Whether what they are given at a position depends on the token there alone.
        heeded: Whether what they make of every position matters to what is predicted at the last.
    """

    module: nn.Module
    names: tuple[str, ...]
    gradient: Tensor
    local: bool
    heeded: bool

    @property
    def width(self) -> int:
        """D."""
        return self.gradient.shape[1]


@dataclass(frozen=True, kw_only=True, eq=False)
class Span:
    """The row space of a gradient.

    Attributes:
        basis: Orthonormal, (D, R).
        complement: The same of what is outside, (D, D - R).
        strengths: The singular values in it, (R,).
        noise: The largest singular value outside of it, at least that of rounding.
        full: Whether more than rounding is outside of it.
    """

    basis: Tensor
    complement: Tensor
    strengths: Tensor
    noise: float
    full: bool

    @property
    def rank(self) -> int:
        """R."""
        return self.basis.shape[1]

    def distance(self, vectors: Tensor) -> Tensor:
        """Return how far vectors (..., D) are from the space, over their lengths, (...)."""
        basis = self.basis.to(vectors)
        rest = vectors - (vectors @ basis) @ basis.T
        distance: Tensor = rest.norm(dim=-1) / vectors.norm(dim=-1).clamp_min(1e-30)
        return distance

    def outside(self, vectors: Tensor) -> Tensor:
        """Return coordinates of vectors (..., D) outside of the space, over their lengths."""
        lengths = vectors.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        coordinates: Tensor = vectors @ self.complement.to(vectors) / lengths
        return coordinates

    def blur(self, vectors: Tensor) -> Tensor:
        """Return the distance to expect of vectors (..., D) that lie in the space, (...).

        What disturbs the gradient turns a direction the more the weaker it is.
        """
        along = (vectors @ self.basis.to(vectors)) * (self.noise / self.strengths).to(vectors)
        blur: Tensor = along.norm(dim=-1) / vectors.norm(dim=-1).clamp_min(1e-30) + _ROUNDING
        return blur


class _Enough(Exception):
    """Ends a run of the model when all that was asked for has been seen."""


def given_to(modules: Sequence[nn.Module], model: nn.Module, inputs: Tensor) -> list[Tensor]:
    """Run the model as far as needed; return what each of the modules was given, (B, T, D).

    Args:
        modules: Parts of the model, in the order they run.
        model: Where they are.
        inputs: Tokens (B, T), or embeddings (B, T, D).
    """
    found: dict[int, Tensor] = {}

    def keep(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        found.setdefault(id(module), args[0])
        if len(found) == len(modules):
            raise _Enough

    handles = [module.register_forward_pre_hook(keep) for module in modules]
    try:
        model(inputs)
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    return [found[id(module)] for module in modules]


def sites_of(
    model: nn.Module, heard: Tensors, visible: Tensors | None, probe: Tensor, length: int
) -> list[Site]:
    """Return the linear layers whose whole weight gradient was heard, in the order they run.

    Args:
        model: With the weights in force, in evaluation mode; a `LanguageModel`.
        heard: The gradient, by parameter name.
        visible: Which coordinates were heard.
        probe: Two tokens that mean something, (2,).
        length: T.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    shared = id(cast(LanguageModel, model).token_embedding.weight)
    runs: list[tuple[nn.Module, Tensor, Tensor, bool]] = []  # given, made, weight is (D, M)

    def keep(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        weight = getattr(module, "weight", None)
        if not (args and isinstance(args[0], Tensor) and isinstance(weight, Tensor)):
            return
        given = args[0]
        if weight.dim() != 2 or not given.is_floating_point() or given.dim() < 2:
            return
        turned = _turned(module, weight, given, output)
        if turned is not None:
            runs.append((module, given, output, turned))

    leaves = [m for m in model.modules() if next(m.children(), None) is None]
    handles = [leaf.register_forward_hook(keep) for leaf in leaves]
    other = probe[:1].repeat(length)[None]
    changed = other.clone()
    changed[0, 0] = probe[1]
    try:
        with torch.enable_grad():
            model(changed)
            again, runs[:] = list(runs), []
            logits = model(other)
            predicted = logits[:, -1] if logits.dim() == 3 else logits
            slopes = torch.autograd.grad(
                predicted.square().sum(), [run[2] for run in runs], allow_unused=True
            )
    finally:
        for handle in handles:
            handle.remove()
    found: list[Site] = []
    vectors: list[Tensor] = []
    gathered: list[tuple[list[tuple[nn.Module, str, bool]], bool, list[bool]]] = []
    for (module, given, _, turned), (_, was, _, _), slope in zip(runs, again, slopes, strict=True):
        weight = cast(Tensor, module.weight)
        # Not only the one before: between the lower halves of two adapters runs an upper half.
        place = next((n for n, one in enumerate(vectors) if torch.equal(one, given)), len(vectors))
        if place == len(vectors):
            local = given.dim() == 3 and torch.equal(given[:, 1:], was[:, 1:])
            gathered.append(([], local, []))
            vectors.append(given)
        name = names.get(id(weight))
        if name is None or name not in heard or id(weight) == shared:
            continue
        if all_visible(visible, name) and bool(heard[name].any()):
            gathered[place][0].append((module, name, turned))
            gathered[place][2].append(slope is not None and bool(slope.any(dim=-1).all()))
    for members, local, heeded in gathered:
        rows = [_rows(heard[name], turned) for _, name, turned in members]
        if rows:
            found.append(
                Site(
                    module=members[0][0],
                    names=tuple(name for _, name, _ in members),
                    gradient=torch.cat([row / row.norm() for row in rows]),
                    local=local,
                    heeded=any(heeded),
                )
            )
    return found


def _turned(module: nn.Module, weight: Tensor, given: Tensor, output: Tensor) -> bool | None:
    """Return whether the weight is (D, M) and not (M, D); None if the layer is not linear."""
    if not isinstance(output, Tensor) or output.shape[:-1] != given.shape[:-1]:
        return None
    bias = getattr(module, "bias", None)
    plain = output - bias if isinstance(bias, Tensor) else output
    given, plain = given.detach(), plain.detach()
    shape = (given.shape[-1], output.shape[-1])
    for turned in (False, True):
        if tuple(weight.shape) == (shape if turned else shape[::-1]):
            expected = given @ (weight if turned else weight.T).detach()
            if float((expected - plain).norm()) <= _MATCHES * float(plain.norm()):
                return turned
    return None


def _rows(gradient: Tensor, turned: bool) -> Tensor:
    return (gradient.T if turned else gradient).double()


def spectrum(gradient: Tensor) -> tuple[Tensor, Tensor]:
    """Return the right singular vectors (D, D) of a gradient (M, D), and values, (D,).

    Values beyond the M-th are zero.
    """
    if gradient.shape[0] > gradient.shape[1]:
        gradient = torch.linalg.qr(gradient, mode="r").R
    _, values, vectors = torch.linalg.svd(gradient, full_matrices=True)
    padded = values.new_zeros(gradient.shape[1])
    padded[: len(values)] = values
    return vectors.T, padded


def span_of(gradient: Tensor, deviation: float = 0.0, *, moved: int | None = None) -> Span:
    """Return the row space of a gradient (M, D), but for what is rounding, or noise that is known.

    Noise of a standard deviation has singular values up to that times sqrt(M) + sqrt(D). Where
    nothing is, as after several local steps, which disturb the tokens' directions and add
    some, the weakest directions of all are left out: of those, tokens have least.

    Args:
        gradient: Of a weight.
        deviation: Of noise that is known.
        moved: Tokens whose directions steps have moved: a second one for each is part of the
            space, but at most half of those that are left.
    """
    vectors, values = spectrum(gradient)
    width = gradient.shape[1]
    loudest = _MARGIN * deviation * (gradient.shape[0] ** 0.5 + width**0.5)
    loud = int((values > max(loudest, _ROUNDING * float(values[0]))).sum())
    most = min(gradient.shape[0], width - max(1, width // _LEFT_OUT))
    if moved is not None:
        most = min(most, 2 * moved, (width + moved) // 2)
    rank = max(1, min(loud, most))
    noise = max(float(values[rank]), _ROUNDING / 10 * float(values[0]))
    return Span(
        basis=vectors[:, :rank].contiguous(),
        complement=vectors[:, rank:].contiguous(),
        strengths=values[:rank],
        noise=noise,
        full=loud >= most,
    )
