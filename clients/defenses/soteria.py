"""Soteria: the gradient of one linear layer without the features that tell most about the input.

Sun et al., CVPR 2021, https://arxiv.org/abs/2012.06043. For one example, every row of a linear
layer's weight gradient is the layer's input, its representation r of the example. Setting feature
i of r to zero moves the reconstruction by about |r_i| / |dr_i/dX|, so the features where that is
largest are taken out of the gradient of this one layer; all other gradients are sent as they are.

Ours: the published code sums |dr_i/dX| / r_i over a batch and prunes the smallest; here it is the
mean of |r_i| / |dr_i/dX|, the same order for one example, in which a feature that is silent for
some examples is not lost from sight. After local steps the features are chosen once, with the
weights received, and taken out of the whole change.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attacks.defense import change_of, hide
from attacks.network import known_architecture, trace
from attacks.observation import AttackFailed, Knowledge, Observation, Tensors
from attacks.text.language import LanguageModel
from fedsim.config import Experiment
from fedsim.defenses import Place, Situation
from fedsim.errors import ConfigError

_AT_ONCE = 256
"""Copies of examples in one backward pass; more examples than that are done one part at a time."""


@dataclass(frozen=True, kw_only=True)
class Soteria:
    """Prunes the most telling features from the gradient of one linear layer.

    Attributes:
        share: Features to prune, of all of the layer; published: 0.6 against Inverting Gradients,
            0.01 against DLG.
        layer: Name of the linear layer; empty for the one that gives the logits.
    """

    share: float = 0.6
    layer: str = ""

    place: ClassVar[Place] = Place.UPDATE
    looks_at_data: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse a share that is none."""
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")

    def check(self, experiment: Experiment, model: nn.Module) -> None:  # noqa: ARG002
        """Refuse a model of text, or one without such a layer."""
        if isinstance(model, LanguageModel):
            raise ConfigError(
                "defenses: soteria asks how features move with the pixels of an image, and tokens "
                "do not move; choose another defense for text"
            )
        linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        if self.layer not in linear and (self.layer or not linear):
            wanted = f"a linear layer '{self.layer}'" if self.layer else "a linear layer"
            raise ConfigError(
                f"defenses: soteria needs {wanted}, and the model's are: "
                f"{', '.join(linear) or 'none'}; set defenses.soteria.options.layer"
            )

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Set the columns of the chosen features to zero."""
        model = copy.deepcopy(at.model).eval()  # examples must not see each other
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(at.before[name])
        name = self.layer or classifier_name(model, tuple(at.inputs.shape[1:]))
        scores = leakage(model, name, at.inputs)
        weight = f"{name}.weight".lstrip(".")
        pruned = torch.zeros_like(scores, dtype=torch.bool)
        pruned[scores.topk(max(1, round(self.share * len(scores)))).indices] = True
        return {**update, weight: update[weight].masked_fill(pruned.to(update[weight].device), 0)}

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Forget the columns that are zero in all rows."""
        name = self.layer
        if not name:
            try:
                name = classifier_name(*known_architecture(known))
            except AttackFailed:
                return seen, known
        weight = f"{name}.weight".lstrip(".")
        change = change_of(seen).get(weight)
        if change is None or change.dim() != 2:
            return seen, known
        alive = change.ne(0).any(dim=0)
        return hide(seen, {weight: alive.expand_as(change)}), known

    def estimated(self, seen: Observation, known: Knowledge) -> "Soteria":
        """Take the linear layer with the largest share of zero columns."""
        if known.model is None:
            return self
        change = change_of(seen)
        shares = {
            name: float(change[weight].eq(0).all(dim=0).double().mean())
            for name, module in known.model.named_modules()
            if isinstance(module, nn.Linear) and (weight := f"{name}.weight".lstrip(".")) in change
        }
        name = max(shares, key=lambda name: shares[name], default="")
        return Soteria(share=shares[name], layer=name) if shares.get(name) else self


def classifier_name(model: nn.Module, input_shape: tuple[int, ...]) -> str:
    """Return the name of the linear layer that gives the logits.

    Raises:
        AttackFailed: There is none.
    """
    classifier = trace(model, input_shape).classifier()
    if classifier is None:
        raise AttackFailed(
            "no linear layer gives the model's logits; name one (defenses.soteria.options.layer)"
        )
    return classifier.name


def leakage(model: nn.Module, layer: str, inputs: Tensor) -> Tensor:
    """Return the mean of |r_i| / |dr_i/dX| over the examples, (F,), for F features.

    Args:
        model: In evaluation mode.
        layer: Whose input r, (B, F), is meant.
        inputs: X, (B, ...).

    Raises:
        ConfigError: Its input is no batch of vectors.
    """
    caught: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_pre_hook(
        lambda _, given: caught.append(given[0])
    )

    def features_of(some: Tensor) -> Tensor:
        model(some)
        values = caught.pop()
        if values.dim() != 2:
            raise ConfigError(
                f"defenses: soteria prunes features of vectors, and layer '{layer}' receives "
                f"{tuple(values.shape[1:])} per example; set defenses.soteria.options.layer"
            )
        return values

    try:
        with torch.no_grad():
            values = torch.cat([features_of(some) for some in torch.split(inputs, _AT_ONCE)])
        lengths = torch.cat(
            [_slopes(features_of, some, values.shape[1]) for some in torch.split(inputs, _AT_ONCE)]
        )
    finally:
        handle.remove()
    return torch.where(values == 0, 0.0, values.abs() / lengths.clamp_min(1e-12)).mean(dim=0)


def _slopes(features_of: Callable[[Tensor], Tensor], inputs: Tensor, width: int) -> Tensor:
    """Return |dr_i/dX| per example and feature, (B, F), for F = `width` features.

    Examples are copied, once for each feature of a backward pass: no derivative is of a sum.
    """
    num_copies = min(width, max(1, _AT_ONCE // len(inputs)))
    copies = inputs.repeat(num_copies, *[1] * (inputs.dim() - 1)).requires_grad_()
    values = features_of(copies).view(num_copies, len(inputs), width)
    lengths: list[Tensor] = []
    for start in range(0, width, num_copies):
        chosen = values[:, :, start : start + num_copies].diagonal(dim1=0, dim2=2)
        more = start + num_copies < width
        (slopes,) = torch.autograd.grad(chosen.sum(), copies, retain_graph=more)
        slopes = slopes.reshape(num_copies, len(inputs), -1)
        lengths.append(slopes[: chosen.shape[1]].norm(dim=2).T)
    return torch.cat(lengths, dim=1)
