"""Whether the gradient of a model can be matched: it must change with the input. No paper."""

from dataclasses import replace

import torch
from torch import Tensor

from attacks.matching.replay import check_replayable
from attacks.matching.victim import Victim, random_batch, rebuild
from attacks.network import known_architecture
from attacks.observation import AttackFailed, Kind, Knowledge, Observation, Tensors
from attacks.threats import WHITE_BOX, Capability

_AGREEMENT = 0.01
"""Largest relative difference between autograd's second derivative and a difference quotient."""
_STEP = 1e-8
"""Step of the quotient, in input ranges: rarely over a kink, far above rounding."""
_ROUNDING = 1e-13
"""Largest relative error of a squared length in double precision."""
_DIRECTIONS = 3
"""Directions in which the two may agree."""


class MatchingAttack:
    """What attacks that match gradients need and refuse."""

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what inputs look like, and how many there are."""
        return WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse what cannot be replayed, and models whose gradient has no derivative."""
        check_matchable(known)


def check_matchable(known: Knowledge) -> None:
    """Refuse, before anything was heard, what no attack by matching could invert.

    Raises:
        AttackFailed: Clients take too many steps to replay, or see `check_twice_differentiable`.
    """
    check_replayable(known.recipe)
    check_twice_differentiable(known)


def check_twice_differentiable(known: Knowledge, weights: Tensors | None = None) -> None:
    """Check, before anything was heard, that gradients of the model can be matched.

    Args:
        known: At least the model and the input's shape.
        weights: By parameter name; None takes the model's own.

    Raises:
        AttackFailed: The model's gradient cannot be differentiated with respect to its input, or
            does not depend on it; or the model draws random numbers.
    """
    model, _ = known_architecture(known)
    own = {name: parameter.detach() for name, parameter in model.named_parameters()}
    stand_in = Observation(
        round=1,
        sender="nobody",
        receiver="nobody",
        kind=Kind.GRADIENT,
        update={name: torch.ones_like(weight) for name, weight in own.items()},
        weights=own if weights is None else weights,
        buffers=dict(model.named_buffers()),
    )
    few = replace(known, batch_size=min(known.batch_size or 2, 2))
    victim = rebuild(stand_in, few, dtype=torch.float64)
    require_twice_differentiable(victim)
    _require_agreement(victim)


def require_twice_differentiable(victim: Victim) -> None:
    """Differentiate the gradient of a random batch once more, with respect to the input.

    Raises:
        AttackFailed: That is not possible, or gives nothing.
    """
    model = f"model {type(victim.model).__name__}"
    advice = (
        "replace that operation by one with a second derivative (a fused attention by one that is "
        "written out), or choose an attack that does not match gradients"
    )
    inputs = random_batch(victim, like=victim.like).requires_grad_()
    targets = torch.arange(victim.batch_size, device=inputs.device) % victim.num_classes
    try:
        length = _length(victim, inputs, targets)
        (slope,) = torch.autograd.grad(length, inputs, allow_unused=True)
    except RuntimeError as error:  # what autograd raises; NotImplementedError is one, too
        reason = str(error).splitlines()[0]
        raise AttackFailed(f"{model} is not twice differentiable: {reason}; {advice}") from error
    if slope is None or not bool(slope.ne(0).any()):
        raise AttackFailed(
            f"the gradient of {model} does not change with the input, so there is nothing to "
            "match: an operation has no derivative, or all activations are saturated; " + advice
        )


def _require_agreement(victim: Victim) -> None:
    """Compare autograd's second derivative with difference quotients, in double precision.

    An operation that hides its second derivative (a custom backward, say) raises nothing: what
    autograd returns is then silently wrong. A quotient is wrong, too, where it steps over the kink
    of a ReLU; so one direction of several in which the two agree is enough. Where the gradient
    hardly changes at all, rounding hides the difference, and the model passes.

    Raises:
        AttackFailed: The two differ in every direction.
    """
    inputs = random_batch(victim, like=victim.like).requires_grad_()
    targets = torch.arange(victim.batch_size, device=inputs.device) % victim.num_classes
    (slope,) = torch.autograd.grad(_length(victim, inputs, targets), inputs)
    low, high = victim.input_range
    generator = torch.Generator().manual_seed(1)
    for _ in range(_DIRECTIONS):
        direction = torch.randn(inputs.shape, generator=generator).to(victim.like)
        found = float((slope * direction).sum())
        step = _STEP * (high - low) * direction
        ahead, behind = (
            float(_length(victim, inputs.detach() + moved, targets).detach())
            for moved in (step, -step)
        )
        expected = (ahead - behind) / (2 * _STEP * (high - low))
        rounding = _ROUNDING * ahead / (2 * _STEP * (high - low))
        if abs(found - expected) <= _AGREEMENT * max(abs(found), abs(expected)) + rounding:
            return
    raise AttackFailed(
        f"model {type(victim.model).__name__} is not twice differentiable: along one direction "
        f"its gradient changes by {expected:.3g}, autograd says {found:.3g}; an operation on the "
        "way hides its second derivative"
    )


def _length(victim: Victim, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared length of the gradient of a batch."""
    gradient = victim.gradient(inputs, targets)
    return torch.stack([g.square().sum() for g in gradient.values()]).sum()
