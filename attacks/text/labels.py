"""What an update says of the labels, once the inputs behind it are known."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attacks.observation import Kind, Knowledge, LocalRecipe, Observation, Tensors
from attacks.text.evidence import Evidence
from attacks.text.span import given_to
from attacks.text.tokens import IGNORED

_SHORTLIST = 32
"""Labels that are looked at closely, where there are more."""
_DIRECTIONS = 16
"""Along which slopes are compared first."""
_MOST_STEPS = 200
"""Local steps up to which a guess is replayed."""


def slots_of(inputs: Tensor, evidence: Evidence) -> tuple[Tensor, Tensor]:
    """Return the labels that inputs (B, T) show, and where there are others.

    Returns:
        Labels (B,) or (B, T), 0 where they are not known; which those are, bool, of their shape.
    """
    tokens = evidence.tokens
    if tokens.head == "classes":
        labels = torch.zeros_like(inputs[:, 0])
        return labels, torch.ones_like(labels, dtype=torch.bool)
    labels = torch.full_like(inputs, IGNORED)
    if tokens.head == "masked":
        unknown = inputs == (tokens.pad if tokens.mask is None else tokens.mask)
    else:
        labels[:, :-1] = torch.where(inputs[:, 1:] == tokens.pad, IGNORED, inputs[:, 1:])
        lengths = (inputs != tokens.pad).sum(dim=1)
        places = torch.arange(inputs.shape[1], device=inputs.device)
        unknown = (places == lengths[:, None] - 1) & (lengths[:, None] < inputs.shape[1])
    return labels.masked_fill(unknown, 0), unknown


def read_labels(evidence: Evidence, known: Knowledge, inputs: Tensor) -> Tensor | None:
    """Return the labels of inputs (B, T), read off the gradient of the last layer that was heard.

    That gradient is a sum of slopes times what the layer was given, which the inputs show; so the
    slopes are known, and with them the labels: each label has its own. A label is found although it
    moves no token, such as the last one of a causal model.

    Returns:
        (B,), or (B, T) with `IGNORED`; None if the layer does not tell them.
    """
    labels, unknown = slots_of(inputs, evidence)
    site = evidence.last
    if not bool(unknown.any()):
        return labels
    if site is None:
        return None
    made: list[Tensor] = []

    def keep(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        made.append(output)

    handle = site.module.register_forward_hook(keep)
    try:
        with torch.enable_grad():
            logits = evidence.model(inputs)
    finally:
        handle.remove()
    with torch.no_grad():
        (given,) = given_to([site.module], evidence.model, inputs)
    output = made[0]

    def slopes(answers: Tensor) -> Tensor:
        (slope,) = torch.autograd.grad(known.loss(logits, answers), output, retain_graph=True)
        return slope.flatten(0, -2).double()

    gradient = evidence.heard[site.names[0]].double()
    if gradient.shape != (output.shape[-1], given.shape[-1]):
        gradient = gradient.T
    given = given.flatten(0, -2).double()
    settled = slopes(labels.masked_fill(unknown, IGNORED)) if labels.dim() == 2 else None
    if settled is not None and not bool((labels.masked_fill(unknown, IGNORED) >= 0).any()):
        settled = None  # nothing is predicted without them, and the mean is none
    if labels.dim() == 1:  # a class is predicted at one position of each example
        rows = slopes(labels).any(dim=1).nonzero()[:, 0]
    else:
        rows = unknown.flatten().nonzero()[:, 0]
    if settled is not None:
        predicted = int((labels != IGNORED).sum())
        share = int((labels.masked_fill(unknown, IGNORED) != IGNORED).sum()) / predicted
        size = float(known.recipe.num_steps) if known.recipe is not None else 1.0
        gradient = gradient - size * share * settled.T @ given
    if len(rows) >= given.shape[1] or len(rows) != int(unknown.sum()):
        return None
    wanted = torch.linalg.lstsq(given[rows].T, gradient.T, driver="gelsd").solution  # (rows, M)
    width = logits.shape[-1]
    if width <= _SHORTLIST:
        choices = torch.arange(width, device=inputs.device).expand(len(rows), width)
    else:
        choices = _shortlist(logits, output, wanted, unknown, rows)
    cosines = []
    for column in choices.T:
        answers = labels.clone()
        answers[unknown] = column
        slope = slopes(answers)[rows]
        cosines.append(torch.cosine_similarity(slope, wanted, dim=1))
    best = torch.stack(cosines).argmax(dim=0)
    labels = labels.clone()
    labels[unknown] = choices.gather(1, best[:, None])[:, 0]
    return labels


def _shortlist(
    logits: Tensor, output: Tensor, wanted: Tensor, unknown: Tensor, rows: Tensor
) -> Tensor:
    """Return the labels whose slopes point most nearly the way of those wanted, (rows, shortlist).

    Slopes are linear in the weights of labels, so one derivative tells all of them along a
    direction; a few directions tell which slopes cannot be the one.
    """
    weights = torch.zeros_like(logits, requires_grad=True)
    loss = -(weights * logits.log_softmax(dim=-1)).sum()
    (slope,) = torch.autograd.grad(loss, output, create_graph=True)
    slope = slope.flatten(0, -2)[rows]
    generator = torch.Generator().manual_seed(0)
    product = square = torch.zeros((), device=logits.device)
    for _ in range(_DIRECTIONS):
        direction = torch.randn(slope.shape[1], generator=generator).to(slope)
        (along,) = torch.autograd.grad((slope @ direction).sum(), weights, retain_graph=True)
        product = product + along[unknown] * (wanted.to(slope) @ direction)[:, None]
        square = square + along[unknown].square()
    cosines = product / square.sqrt().clamp_min(1e-30)
    return cosines.topk(_SHORTLIST, dim=-1).indices


def misfit_of(
    evidence: Evidence, seen: Observation, known: Knowledge, inputs: Tensor, labels: Tensor
) -> float | None:
    """Return the relative error of what a guess makes a client send; None if that is unknown."""
    recipe = known.recipe or LocalRecipe()
    num_steps = recipe.num_steps if seen.kind in (Kind.DELTA, Kind.WEIGHTS) else 1
    size = recipe.batch_size or len(inputs)
    if not evidence.scaled or (num_steps > 1 and size < len(inputs)) or num_steps > _MOST_STEPS:
        return None
    guess = _replayed(evidence, known, inputs, labels, recipe, num_steps)
    wrong, whole = 0.0, 0.0
    for name, heard in evidence.heard.items():
        if name not in guess:
            continue
        mask = (evidence.visible or {}).get(name)
        counts = torch.ones_like(heard) if mask is None else mask.to(heard)
        wrong += float(((guess[name] - heard) * counts).double().square().sum())
        whole += float((heard * counts).double().square().sum())
    return (wrong / whole) ** 0.5 if whole else None


def _replayed(
    evidence: Evidence,
    known: Knowledge,
    inputs: Tensor,
    labels: Tensor,
    recipe: LocalRecipe,
    num_steps: int,
) -> Tensors:
    """Return the gradient of a batch; of several steps on all of it, the pseudo-gradient."""
    model = evidence.model
    start = {name: p.detach() for name, p in model.named_parameters()}
    now = {name: p.clone().requires_grad_() for name, p in start.items()}
    rate = recipe.learning_rate or 1.0
    velocity: dict[str, Tensor] = {}
    for _ in range(num_steps):
        with torch.enable_grad():
            loss = known.loss(functional_call(model, now, (inputs,)), labels)
            slopes = torch.autograd.grad(loss, list(now.values()), materialize_grads=True)
        found = dict(zip(now, slopes, strict=True))
        if num_steps == 1:
            return found
        for name, slope in found.items():
            slope = slope + recipe.proximal_mu * (now[name].detach() - start[name])
            velocity[name] = recipe.momentum * velocity.get(name, 0.0) + slope
        now = {
            name: (p.detach() - rate * velocity[name]).requires_grad_() for name, p in now.items()
        }
    return {name: (start[name] - p.detach()) / rate for name, p in now.items()}
