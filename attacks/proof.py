"""Whether one image alone explains what a row of the first layer tells.

A server that isolates images in rows of a layer does not know which rows hold one and which a
mixture of several. It can find out: it has the weights, so it recomputes what the image it reads
would have told, for every possible label. Two tests:

- The row's bias gradient must be the one heard. That is one equation, which some of many mixtures
  pass for one of many labels by chance.
- The gradient of the loss by all outputs of some layer must lie in the column space of that layer's
  gradient, which is the span of these vectors for the examples of the batch. That is an equation
  per output, less one per example. How many of them are independent in this model, and how far
  from zero an image that is not in the batch leaves them, is measured on mixtures that are made up.

The chance that any candidate passes both by accident is counted, and must be below 1e-6.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd

from attacks.column_space import (
    CHANCE,
    EXACT,
    MOST_EQUATIONS,
    SIGMAS,
    Noise,
    chance_log10,
    noise_of,
)
from attacks.first_layer import sensitivity_by_label, slope_of_logits
from attacks.observation import AttackFailed, Knowledge, LocalRecipe, Loss

TOLERANCE = 1e-4
"""Relative difference up to which a recomputed bias gradient is the one heard."""
_CLEAR = 1e-3
"""Largest rounding, relative to what was heard, with which anything can be proved."""
_FARTHEST = 0.05
"""Largest misfit of a proof, relative to that of mixtures, however noisy the gradient."""
_MIXTURES = 32
_CHUNK = 256
"""Images recomputed at once."""


def recomputable(model: nn.Module, recipe: LocalRecipe | None) -> bool:
    """Whether an image's gradient is the same alone and in its batch, every time."""
    together = (_NormBase, _DropoutNd)
    train_mode = (recipe or LocalRecipe()).train_mode
    return not (train_mode and any(isinstance(part, together) for part in model.modules()))


@dataclass(frozen=True, kw_only=True, eq=False)
class Witness:
    """The gradient of a linear layer, in whose column space proofs must lie.

    Attributes:
        layer: Its name in the model.
        gradient: Of its weight, and of its bias as a last column where it has one, (m, D) float64.
        heard: Which rows of it were heard completely, (m,) bool; the others are zero.
    """

    layer: str
    gradient: Tensor
    heard: Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """What became of M candidates.

    Attributes:
        proved: Which pass both tests, so that chance is ruled out, (M,) bool.
        fits: Which pass the first, (M,) bool; some may be mixtures.
        labels: Those that explain them best, (M,) int64.
    """

    proved: Tensor
    fits: Tensor
    labels: Tensor


def explained_by(
    model: nn.Module,
    images: Tensor,
    heard: Tensor,
    rows: Tensor,
    *,
    layer: str,
    known: Knowledge,
    rounding: Tensor | float,
    witness: Witness,
    rng: torch.Generator,
) -> Explained:
    """Recompute what each image would have told, for every label, in double precision.

    Args:
        model: With the weights in force, in evaluation mode; not modified.
        images: Candidates, shape (M, C, H, W).
        heard: The bias gradient that each one is to explain, (M,), of the mean over the batch.
        rows: In which row of the layer, (M,) int64.
        layer: Name of the linear layer.
        known: The loss and the batch size.
        rounding: Absolute error of `heard`, (M,) or one for all.
        witness: The layer of the second test; it may be the same one.
        rng: Draws directions that find the column space, and labels of made-up mixtures.
    """
    if known.batch_size is None:
        raise AttackFailed("recomputing a gradient needs the batch size; grant 'batch-size'")
    proved = torch.zeros_like(rows, dtype=torch.bool)
    if not len(images):
        return Explained(proved=proved, fits=proved, labels=torch.zeros_like(rows))
    model, images, heard = copy.deepcopy(model).double(), images.double(), heard.double()
    mismatch = _mismatch(model, images, heard, rows, layer, known)  # (M, K)
    labels = mismatch.argmin(1)
    clear = torch.as_tensor(rounding <= _CLEAR * heard.abs())
    bound = TOLERANCE + rounding / heard.abs().clamp_min(torch.finfo(heard.dtype).tiny)
    passes = (mismatch <= bound[:, None]) & clear.expand_as(heard)[:, None]
    which, label = passes.nonzero(as_tuple=True)
    if not len(which):
        return Explained(proved=proved, fits=proved, labels=labels)

    def vectors(inputs: Tensor, targets: Tensor) -> Tensor:
        return _sensitivities(model, inputs, targets, witness.layer, known.loss) * witness.heard

    space = _space(witness, known.batch_size, heard, rounding, rng)
    equations, typical = _measured(vectors, images, space, mismatch.shape[1], rng)
    found = vectors(images[which], label)
    error = (bound - TOLERANCE)[which].view(-1, *[1] * (images.dim() - 1))
    shaken = images[which] + error * torch.randn(images.shape[1:], generator=rng).to(images)
    beyond = space.beyond(found)
    change = (vectors(shaken, label) - found).norm(dim=1) / beyond.lengths
    distance = torch.where(found.any(1), beyond.rest.norm(dim=1) / beyond.lengths, torch.inf)
    off = mismatch[which, label]
    chance = chance_log10(mismatch.numel(), off, equations, distance / typical)
    allowed = EXACT + SIGMAS * (beyond.blur + change)
    passed = (distance <= allowed.clamp_max(_FARTHEST * typical)) & (
        chance <= CHANCE if equations else torch.zeros_like(which, dtype=torch.bool)
    )
    which, label, off = which[passed], label[passed], off[passed]
    # Of several labels of one image that pass, the best at its row stays.
    best = torch.full_like(mismatch, torch.inf)
    best[which, label] = off
    proved = best.isfinite().any(1)
    labels = torch.where(proved, best.argmin(1), labels)
    return Explained(proved=proved, fits=passes.any(1), labels=labels)


def _mismatch(
    model: nn.Module, images: Tensor, heard: Tensor, rows: Tensor, layer: str, known: Knowledge
) -> Tensor:
    """Return by how much each label fails to explain what was heard, relative, (M, K).

    One pass gives the derivative of all logits by the row; the label only enters after them.
    """
    logits, slope = _through(model, images, rows, layer)
    told = sensitivity_by_label(known.loss, logits, slope, share=1)
    told = len(images) / (known.batch_size or 1) * told
    tiny = torch.finfo(heard.dtype).tiny
    return (told - heard[:, None]).abs() / heard.abs().clamp_min(tiny)[:, None]


def _space(
    witness: Witness, batch_size: int, heard: Tensor, rounding: Tensor | float, rng: torch.Generator
) -> Noise:
    """Return the column space, with no less noise than the rounding of what was heard."""
    space = noise_of(witness.gradient, witness.heard, batch_size, rng)
    relative = float(torch.as_tensor(rounding).max() / heard.abs().max())
    least = relative * witness.gradient.square().mean(1).sqrt()
    rows = torch.maximum(space.rows, least)
    width = witness.gradient.shape[1]
    signal = space.strengths > rows.norm() + float(rows.max()) * width**0.5
    return Noise(
        basis=space.basis[:, signal],
        strengths=space.strengths[signal],
        rows=rows,
        equations=space.equations,
    )


def _measured(
    vectors: Callable[[Tensor, Tensor], Tensor],
    images: Tensor,
    space: Noise,
    num_classes: int,
    rng: torch.Generator,
) -> tuple[int, float]:
    """Return how many equations are independent, and by how much mixtures fail them, relative.

    The mixtures are means of two candidates. Where a model is so simple that their vectors lie in
    the column space as well, there are no equations.
    """
    chosen = images[torch.randperm(len(images), generator=rng)[:_MIXTURES].to(images.device)]
    partner = chosen.roll(1, 0) if len(chosen) > 1 else chosen.flip(-1)
    mixed = torch.cat([(chosen + partner) / 2, 0.7 * chosen + 0.3 * partner])
    targets = torch.randint(num_classes, (len(mixed),), generator=rng).to(mixed.device)
    made_up = vectors(mixed, targets)
    lengths = made_up.norm(dim=1, keepdim=True)
    made_up = (made_up / lengths)[lengths[:, 0] > 0]
    if not len(made_up):
        return 0, 1.0
    beyond = made_up - (made_up @ space.basis) @ space.basis.T
    strengths = torch.linalg.svdvals(beyond)
    typical = float(beyond.norm(dim=1).quantile(0.1))
    if not typical > EXACT:
        return 0, 1.0
    return min(MOST_EQUATIONS, int((strengths > 0.1 * strengths[0]).sum())), typical


def _sensitivities(
    model: nn.Module, images: Tensor, labels: Tensor, layer: str, loss: Loss
) -> Tensor:
    """Return the gradient of each image's own loss by the outputs of a layer, (N, m)."""
    parts = []
    for at in range(0, len(images), _CHUNK):
        logits, outputs = _cut_at(model, images[at : at + _CHUNK], layer)
        with torch.enable_grad():
            total = loss(logits, labels[at : at + _CHUNK]) * len(logits)
        parts.append(torch.autograd.grad(total, outputs)[0])
    return torch.cat(parts)


def _through(model: nn.Module, images: Tensor, rows: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Return the logits, (M, K), and their derivative by the output of each image's row."""
    logits, outputs = _cut_at(model, images, layer)
    return logits.detach(), slope_of_logits(logits, outputs, rows)


def _cut_at(model: nn.Module, images: Tensor, layer: str) -> tuple[Tensor, Tensor]:
    """Return the logits, (M, K), and the outputs of a layer that their graph begins with."""
    outputs: list[Tensor] = []

    def cut(_: nn.Module, __: object, output: Tensor) -> Tensor:
        outputs.append(output.detach().requires_grad_())
        return outputs[-1].clone()  # what follows may work in place

    handle = model.get_submodule(layer).register_forward_hook(cut)
    with torch.enable_grad():
        logits: Tensor = model(images)
    handle.remove()
    return logits, outputs[-1]
