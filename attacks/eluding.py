"""Eluding secure aggregation (Pasquini et al., 2022, https://arxiv.org/abs/2111.07380).

Secure aggregation shows a server the mean of all updates and no single one. But nobody checks that
all clients were sent the same weights. The server sends the target the weights in force, and
everybody else weights under which no example has a gradient: a layer before an activation that
never fires. Their updates are zero, so the mean is the target's update times its share of the
examples, and any attack on one client's update does the rest.

Differs from the paper. A dead layer leaves one parameter that the others still write to: the bias
of the classifier, whose gradient depends on their labels. It is not used; for a target with one
example it is worked out from the classifier's weight gradient. Where the classifier's input does
not come from an activation that can be silenced (tanh, a residual sum, or none), the classifier's
own weight is zeroed instead, which stops every gradient below it in any architecture; then the
classifier's gradient is not used at all.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from attacks.active import KeepsArchitecture
from attacks.inner import inner_attack
from attacks.network import Layer, Trace, known_architecture, same_values, trace, with_weights
from attacks.observation import (
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    Observation,
    Reconstruction,
    Tensors,
    only,
    require_one_step,
)
from attacks.threats import ORACLE, Capability

_SILENCE = -1e4
"""Bias under which an activation is exactly zero in single precision, and so is its slope."""
_SILENCED = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.GELU, nn.SiLU, nn.Softplus)
_PASSING = (
    nn.Flatten,
    nn.Identity,
    nn.Dropout,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
)
"""Layers that turn zeros into zeros."""
_Silence = Literal["auto", "dead-activation", "zero-classifier"]
_ONE = 0.3
"""Second singular value of the classifier's gradient, relative to the first, up to which it is that
of one example and noise."""
_MOST_ERROR = 2.0
"""Largest sum of |p - e_label| over classes, for any example, and so for any mean of them."""
_SLACK = 0.05
_BIASED = (nn.Linear, nn.Conv2d, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm)


@dataclass(frozen=True, kw_only=True, eq=False)
class Silencer:
    """How to silence everybody but the target.

    Attributes:
        values: What the named parameters are filled with.
        written: Parameters whose gradient the silenced clients still write to.
    """

    values: Mapping[str, float]
    written: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Eluding(KeepsArchitecture):
    """Silence all clients but one, so that the mean of all updates is that one's.

    Attributes:
        then: The attack on the target's update, a name from `fedsim list attacks`.
        options: Its settings.
        examples: The target's number of examples; None takes the batch size of the recipe.
        silence: "dead-activation", as published, "zero-classifier", or "auto": the first where
            the architecture allows it.
    """

    then: str = "inverting-gradients"
    options: Mapping[str, object] = field(default_factory=dict)
    examples: int | None = None
    silence: _Silence = "auto"

    def __post_init__(self) -> None:
        if self.examples is not None and not self.examples >= 1:
            raise ValueError(f"examples must be at least 1, got {self.examples}")
        if self.silence not in get_args(_Silence):
            expected = ", ".join(get_args(_Silence))
            raise ValueError(f"silence must be one of {expected}, got {self.silence!r}")
        if ORACLE & inner_attack(self.then, self.options).needs:
            raise ValueError("labels of one client among many are not granted as an oracle")

    @property
    def needs(self) -> frozenset[Capability]:
        """What the attack on the target needs, to send weights, and the target's batch size."""
        own = {Capability.CHANGE_WEIGHTS, Capability.ARCHITECTURE, Capability.BATCH_SIZE}
        if self.examples is None:
            own.add(Capability.LOCAL_RECIPE)
        return inner_attack(self.then, self.options).needs | own

    def check(self, known: Knowledge) -> None:
        """Refuse several steps, models that cannot be silenced, what the other attack refuses."""
        require_one_step(known.recipe)
        self._silencer(known)
        about = self._about_target(known)
        if known.batch_size is not None and known.batch_size <= (about.batch_size or 1):
            raise AttackFailed(
                f"a message tells of {known.batch_size} examples, and the target alone has "
                f"{about.batch_size}: there is nobody to silence. Where the server hears each "
                f"client by itself, run '{self.then}'; otherwise set options.examples"
            )
        inner_attack(self.then, self.options).check(about)

    def tamper(
        self,
        weights: Tensors,
        known: Knowledge,
        *,
        receiver: str,
        target: str,
        earlier: Sequence[Observation],  # noqa: ARG002 - nothing is learnt from round to round
        rng: torch.Generator,  # noqa: ARG002 - nothing is drawn
    ) -> dict[str, Tensor]:
        """Return `weights` as they are for the target, and silencing ones for everybody else."""
        if receiver == target:
            return dict(weights)
        filled = self._silencer(known).values
        return {
            name: torch.full_like(tensor, filled[name]) if name in filled else tensor
            for name, tensor in weights.items()
        }

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Scale the mean up to the target's update, and invert that.

        Shapes:
            returns .inputs: (n, C, H, W), n being the target's number of examples

        The notes are those of the attack on the target.

        Raises:
            AttackFailed: The target's number of examples is not known, or cannot be what it is
                said to be, or the attack on its update fails.
        """
        start = time.monotonic()
        seen = only(seen)
        if seen.kind is not Kind.AGGREGATE:
            raise AttackFailed(
                f"a message of kind '{seen.kind}' is one client's, not a mean over clients: run "
                f"'{self.then}' by itself"
            )
        if known.batch_size is None or seen.weights is None:
            raise AttackFailed("scaling a mean up needs the number of examples and the weights")
        about = self._about_target(known)
        examples = about.batch_size or 1
        if examples > known.batch_size:
            raise AttackFailed(
                f"the target is said to have {examples} examples, and all clients together have "
                f"{known.batch_size}; set options.examples"
            )
        factor = known.batch_size / examples
        written = self._silencer(known).written
        update = {n: factor * t for n, t in seen.update.items() if n not in written}
        update.update(_classifier_bias(update, about, seen.weights, seen.buffers))
        alone = replace(
            seen, kind=Kind.GRADIENT, update=update, visible=None, num_examples=about.batch_size
        )
        attack = inner_attack(self.then, self.options)
        found = attack(alone, about, rng=rng, budget=budget)
        return replace(
            found,
            seconds=time.monotonic() - start,
            notes={**found.notes, "share": 1 / factor},
        )

    def _about_target(self, known: Knowledge) -> Knowledge:
        recipe = known.recipe
        examples = self.examples or (recipe.batch_size if recipe is not None else None)
        if examples is None:
            raise AttackFailed(
                "the target's number of examples is not known; grant 'local-recipe' with a batch "
                "size, or set options.examples"
            )
        return replace(known, batch_size=examples, labels=None)

    def _silencer(self, known: Knowledge) -> Silencer:
        model, input_shape = known_architecture(known)
        traced = trace(model, input_shape)
        classifier = traced.classifier()
        if classifier is None:
            raise AttackFailed("no linear layer gives the logits: nothing to silence")
        bias = classifier.parameter("bias")
        if self.silence != "zero-classifier":
            dead = _dead_activation(traced, classifier)
            if dead is not None:
                values = {dead.parameter("weight"): 0.0, dead.parameter("bias"): _SILENCE}
                return Silencer(values=values, written=frozenset({bias}))
            if self.silence == "dead-activation":
                raise AttackFailed(
                    "the classifier's input does not come from an activation that can be silenced; "
                    "set silence = 'zero-classifier'"
                )
        weight = classifier.parameter("weight")
        return Silencer(values={weight: 0.0}, written=frozenset({weight, bias}))


def _dead_activation(traced: Trace, classifier: Layer) -> Layer | None:
    """Return the layer with a bias whose activation, and nothing else, feeds the classifier."""
    layers = list(traced.layers)
    at = next(i for i, layer in enumerate(layers) if layer.name == classifier.name)
    flowing = classifier.inputs
    while at > 0 and isinstance(layers[at - 1].module, _PASSING):
        at -= 1
        if not same_values(layers[at].outputs, flowing):
            return None
        flowing = layers[at].inputs
    if at < 2:
        return None
    activation, layer = layers[at - 1], layers[at - 2]
    silenced = isinstance(activation.module, _SILENCED) and isinstance(layer.module, _BIASED)
    chained = same_values(activation.outputs, flowing)
    chained = chained and same_values(layer.outputs, activation.inputs)
    has_bias = getattr(layer.module, "bias", None) is not None
    return layer if silenced and chained and has_bias else None


def _classifier_bias(
    update: Tensors, known: Knowledge, weights: Tensors, buffers: Tensors | None
) -> dict[str, Tensor]:
    """Work out the classifier's bias gradient of one example from its weight gradient.

    The latter is d h^T, d = p - e_label, of rank one: its factors tell h up to a scale s, and
    log p_j - log p_k = s (W_j - W_k) v + b_j - b_k is linear in s.

    Returns:
        By name; nothing for several examples or where the weight gradient was not heard.

    Raises:
        AttackFailed: No single example has this gradient.
    """
    model, input_shape = known_architecture(known)
    layer = trace(model, input_shape).classifier()
    if layer is None:
        return {}
    name, bias_name = layer.parameter("weight"), layer.parameter("bias")
    if known.batch_size != 1 or name not in update or bias_name not in weights:
        return {}
    left, strengths, right = torch.linalg.svd(update[name].double(), full_matrices=False)
    if len(strengths) > 1 and bool(strengths[1] > _ONE * strengths[0]):
        raise AttackFailed(
            "the target is said to have one example, and its classifier's gradient is a mixture of "
            "several; set options.examples"
        )
    d, v = left[:, 0] * strengths[0], right[0]  # s times p - e_label, and h / s, up to one sign
    d, v = (d, v) if int((d < 0).sum()) == 1 else (-d, -v)
    if int((d < 0).sum()) != 1 or not strengths[0] > 0:
        return {}
    model = with_weights(model, weights, buffers)
    matrix = model.get_parameter(name).detach().double()
    bias = model.get_parameter(bias_name).detach().double()
    likely = d > 1e-6 * d.abs().max()
    if int(likely.sum()) < 2:
        return {}
    heights, slopes = (d[likely].log() - bias[likely]), matrix[likely] @ v
    heights, slopes = heights - heights.mean(), slopes - slopes.mean()
    scale = (heights @ slopes) / (slopes @ slopes).clamp_min(1e-300)
    if not scale > 0:
        return {}
    size = float((d / scale).abs().sum())
    if size > _MOST_ERROR * (1 + _SLACK):
        raise AttackFailed(
            f"the target's example would have an error of {size:.3g} in its classifier, and none "
            f"has more than {_MOST_ERROR:g}: it has more examples than said; set options.examples"
        )
    return {bias_name: (d / scale).to(update[name].dtype)}
