"""The victim as the attacker rebuilds it: the update that any guessed batch would have given.

Of a client that takes one step, that is a gradient; of one that takes several, the pseudo-gradient
of `attacks.matching.replay`, when the recipe is known.
"""

import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from attacks.global_generators import global_generators
from attacks.matching.replay import Plan, plan_of, replay
from attacks.network import known_architecture, logits_of, require_sound_weights
from attacks.observation import (
    AttackFailed,
    Kind,
    Knowledge,
    LocalRecipe,
    Loss,
    Observation,
    Tensors,
    pseudo_gradient_of,
)
from attacks.words import some_of

_ONE_GRADIENT = LocalRecipe()


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """A private copy of the model in force, and the gradient heard from it.

    Coordinates that were not heard are zero in `target` and in every gradient given back. Where
    the client takes several steps, gradient means pseudo-gradient.

    Attributes:
        model: The copy, with the observed weights, in the mode the client trains in.
        loss: The training loss, mean over the batch.
        target: The gradient heard, by parameter name.
        visible: 1 where a coordinate was heard, else 0; only for names not heard completely.
        input_shape: Shape of one input.
        input_range: Lowest and highest value of an input.
        batch_size: B, the number of different examples.
        num_classes: K.
        recipe: How the client turns gradients into what it sends.
        plan: The batches of its steps; None is one step with all examples.
        trained: Parameters that several steps change, heard or not.
    """

    model: nn.Module
    loss: Loss
    target: Tensors
    visible: Tensors
    input_shape: tuple[int, ...]
    input_range: tuple[float, float]
    batch_size: int
    num_classes: int
    recipe: LocalRecipe = _ONE_GRADIENT
    plan: Plan | None = None
    trained: tuple[str, ...] = ()

    @property
    def like(self) -> Tensor:
        """A tensor of the dtype and on the device that everything is computed in."""
        return next(iter(self.target.values()))

    @property
    def square_norm(self) -> float:
        """The squared Euclidean norm of the target."""
        return float(sum(t.double().square().sum() for t in self.target.values()))

    @property
    def num_steps(self) -> int:
        """Local steps behind the target; 1 means that it is one gradient."""
        return 1 if self.plan is None else len(self.plan)

    def gradient(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the gradient of a guess, with the graph to differentiate it again.

        Args:
            inputs: Shape (B, *input_shape).
            targets: Labels (B,) int64, or probabilities (B, K).
        """
        parameters = dict(self.model.named_parameters())
        if self.plan is None:
            wanted = {name: parameters[name] for name in self.target}
            return self._heard(_autograd(self.loss, self.model(inputs), targets, wanted))

        def gradient_at(now: dict[str, Tensor], some: Tensor, their: Tensor) -> dict[str, Tensor]:
            logits = functional_call(self.model, {**parameters, **now}, (some,))
            return _autograd(self.loss, logits, their, now)

        trained = {name: parameters[name] for name in self.trained}
        return self._heard(replay(gradient_at, trained, inputs, targets, self.plan, self.recipe))

    def functional_gradient(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the same as `gradient`, for use inside the transforms of `torch.func`."""
        parameters = {name: p.detach() for name, p in self.model.named_parameters()}

        def gradient_at(now: dict[str, Tensor], some: Tensor, their: Tensor) -> dict[str, Tensor]:
            def loss(wanted: dict[str, Tensor]) -> Tensor:
                logits = functional_call(self.model, {**parameters, **wanted}, (some,))
                return self.loss(logits, their)

            slopes: dict[str, Tensor] = grad(loss)(now)
            return slopes

        if self.plan is None:
            wanted = {name: parameters[name] for name in self.target}
            return self._heard(gradient_at(wanted, inputs, targets))
        trained = {name: parameters[name] for name in self.trained}
        return self._heard(replay(gradient_at, trained, inputs, targets, self.plan, self.recipe))

    def _heard(self, gradient: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what of a gradient was heard, zero where a coordinate was not."""
        heard = {name: gradient[name] for name in self.target}
        for name, mask in self.visible.items():
            heard[name] = heard[name] * mask
        return heard


def rebuild(seen: Observation, known: Knowledge, *, dtype: torch.dtype) -> Victim:
    """Rebuild the victim behind one observation, on the observation's device.

    Batch normalisation uses the statistics of the guessed batch if the client trains in training
    mode, and the running statistics heard if it does not. Without a known recipe, training mode.
    Behind a mean of several clients each normalises its own batch, and nobody hears which examples
    share one: that is refused in training mode.

    A client that takes several steps, as the recipe says, is replayed step by step. Parameters that
    were not heard are trained in the replay all the same, unless the architecture has them frozen
    (`requires_grad` is False, and no change of them was heard).

    Raises:
        AttackFailed: Something needed was not heard or not granted, the names or shapes of
            parameters differ from the model's, the update takes too many steps to replay, it is
            zero or not finite, it is a mean over batches that were normalised each on its own, or
            the model draws random numbers.
    """
    architecture, input_shape = known_architecture(known)
    if known.batch_size is None:
        raise AttackFailed("matching gradients needs the batch size; grant 'batch-size'")
    if seen.weights is None:
        raise AttackFailed("matching gradients needs the weights in force, which were not heard")
    recipe = known.recipe or LocalRecipe()
    if seen.kind is Kind.AGGREGATE:
        _require_one_normalisation(architecture, recipe, known.batch_size)
    heard = pseudo_gradient_of(seen, known.recipe)
    parameters = dict(architecture.named_parameters())
    buffers = dict(architecture.named_buffers())
    heard = {
        name: tensor
        for name, tensor in heard.items()
        if name not in buffers and not _frozen(parameters.get(name), tensor)
    }
    _check_shapes("update", heard, parameters)
    _check_shapes(
        "weights", {n: w for n, w in seen.weights.items() if n not in buffers}, parameters
    )
    require_sound_weights(architecture, seen.weights)
    missing = sorted(parameters.keys() - seen.weights.keys())
    if missing:
        raise AttackFailed(f"the weights in force of {some_of(missing)} were not heard")
    target, visible = _visible_part(heard, seen.visible or {}, dtype)
    several = seen.kind in (Kind.DELTA, Kind.WEIGHTS)
    plan = plan_of(recipe, known.batch_size) if several else ()
    trained = {name for name, p in parameters.items() if p.requires_grad or name in target}
    like = next(iter(target.values()))
    model = _copy_in_force(architecture, seen, recipe).to(like)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in (trained if len(plan) > 1 else target))
    victim = Victim(
        model=model,
        loss=known.loss,
        target=target,
        visible=visible,
        input_shape=input_shape,
        input_range=known.input_range,
        batch_size=known.batch_size,
        num_classes=_probe(model, random_batch(known, like=like)),
    )
    if len(plan) <= 1:
        return victim
    return replace(victim, recipe=recipe, plan=plan, trained=tuple(sorted(trained)))


def _autograd(loss: Loss, logits: Tensor, targets: Tensor, wanted: Tensors) -> dict[str, Tensor]:
    """Return the gradient with respect to `wanted`, by name, zero where there is none."""
    found = torch.autograd.grad(
        loss(logits, targets),
        list(wanted.values()),
        create_graph=True,
        allow_unused=True,
        materialize_grads=True,
    )
    return dict(zip(wanted, found, strict=True))


def _require_one_normalisation(model: nn.Module, recipe: LocalRecipe, batch_size: int) -> None:
    """Refuse means of clients that normalise their batches, each on its own.

    Raises:
        AttackFailed: A layer normalises by the statistics of a batch, and more examples are behind
            the mean than one client takes, or nobody knows how many that are.
    """
    if recipe.batch_size is not None and batch_size <= recipe.batch_size:
        return
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and (recipe.train_mode or module.running_mean is None):
            raise AttackFailed(
                f"layer '{name}' normalises each client's batch on its own, and the mean heard of "
                f"{batch_size} examples does not say which of them were one batch; choose an "
                "attack that recomputes no gradient, or a model without batch normalisation"
            )


def _frozen(parameter: nn.Parameter | None, heard: Tensor) -> bool:
    """Whether a parameter is not trained, as the architecture says and the update bears out."""
    return parameter is not None and not parameter.requires_grad and not bool(heard.any())


def _check_shapes(what: str, tensors: Tensors, parameters: dict[str, nn.Parameter]) -> None:
    unknown = sorted(tensors.keys() - parameters.keys())
    if unknown:
        raise AttackFailed(f"the {what} heard have no counterpart in the model: {some_of(unknown)}")
    for name, tensor in tensors.items():
        if tensor.shape != parameters[name].shape:
            raise AttackFailed(
                f"the {what} heard of '{name}' have shape {tuple(tensor.shape)}, the model's "
                f"have {tuple(parameters[name].shape)}"
            )


def _visible_part(
    heard: Tensors, masks: Tensors, dtype: torch.dtype
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return what was heard, zero elsewhere, and the masks of names heard in part."""
    target: dict[str, Tensor] = {}
    visible: dict[str, Tensor] = {}
    for name, tensor in heard.items():
        mask = masks.get(name)
        if mask is None or bool(mask.all()):
            target[name] = tensor.detach().to(dtype)
        elif bool(mask.any()):
            visible[name] = mask.to(tensor.device, dtype)
            target[name] = torch.where(mask.to(tensor.device), tensor.detach(), 0).to(dtype)
    if not any(bool(tensor.ne(0).any()) for tensor in target.values()):
        raise AttackFailed("nothing to match: no coordinate other than zero was heard")
    if not all(bool(tensor.isfinite().all()) for tensor in target.values()):
        raise AttackFailed("the update heard is not finite")
    return target, visible


def _copy_in_force(model: nn.Module, seen: Observation, recipe: LocalRecipe) -> nn.Module:
    """Return a copy of the model with the weights and buffers heard, in the client's mode."""
    weights, buffers = seen.weights or {}, seen.buffers or {}
    model = copy.deepcopy(model).train(recipe.train_mode)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])
        for name, buffer in model.named_buffers():
            if name in buffers:
                buffer.copy_(buffers[name])
    for name, module in model.named_modules():
        if not isinstance(module, _NormBase) or module.running_mean is None:
            continue
        if recipe.train_mode:
            # Running statistics play no part in training; without them nothing is updated.
            module.running_mean = module.running_var = module.num_batches_tracked = None
            module.track_running_stats = False
        elif f"{name}.running_mean".lstrip(".") not in buffers:
            raise AttackFailed(
                f"clients train in evaluation mode, and the running statistics of '{name}' were "
                "not heard; grant 'batchnorm-statistics'"
            )
    return model


def random_batch(of: Knowledge | Victim, *, like: Tensor) -> Tensor:
    """Return inputs inside the range, always the same, with the dtype and device of `like`."""
    low, high = of.input_range
    shape = (of.batch_size or 1, *(of.input_shape or ()))
    uniform = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return (low + (high - low) * uniform).to(like)


def _probe(model: nn.Module, inputs: Tensor) -> int:
    """Run the model twice; return the number of classes.

    Raises:
        AttackFailed: It draws random numbers, or does not return logits (B, K).
    """
    with torch.no_grad(), global_generators(device=inputs.device):
        once, again = logits_of(model, inputs), logits_of(model, inputs)
    if once.dim() != 2 or len(once) != len(inputs):
        raise AttackFailed(
            f"the model must return logits (B, K), got {tuple(once.shape)} for B = {len(inputs)}"
        )
    if not torch.allclose(once, again, equal_nan=True):
        layers = [n for n, m in model.named_modules() if "Dropout" in type(m).__name__]
        where = f" ({some_of(layers)})" if layers else ""
        raise AttackFailed(
            f"the client's model draws random numbers in training mode{where}: its gradient "
            "cannot be recomputed"
        )
    return int(once.shape[1])
