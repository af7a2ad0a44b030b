"""PRECODE: a variational bottleneck in front of the classifier.

Scheliga et al., WACV 2022, https://arxiv.org/abs/2108.04725. What reaches the classifier is
encoded as the mean and the deviation of a normal distribution with fewer dimensions; a draw from
it is decoded. Gradients above the encoder depend on the draw, which nobody else can repeat, so a
guess of the input has no gradient to be compared with. The loss is the usual one plus `beta` times
the Kullback-Leibler divergence of the code from the standard normal distribution.

Ours: the deviation is a softplus of the encoder's output. In evaluation mode the mean is decoded,
and nothing is drawn.
"""

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.defense import hide, strike
from attacks.network import trace
from attacks.observation import AttackFailed, Knowledge, Observation
from fedsim.defenses import Place
from fedsim.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Precode:
    """Puts a variational bottleneck in front of the classifier.

    Attributes:
        width: Dimensions of the code.
        beta: Weight of the divergence of the code from a standard normal distribution.
    """

    width: int = 256
    beta: float = 1e-3

    place: ClassVar[Place] = Place.MODEL

    def __post_init__(self) -> None:
        """Refuse a code of nothing."""
        if self.width < 1:
            raise ValueError(f"width must be at least 1, got {self.width}")
        if self.beta < 0:
            raise ValueError(f"beta must be 0 or more, got {self.beta}")

    def alter(self, model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:  # noqa: ARG002
        """Put the bottleneck in front of the linear layer that gives the logits."""
        try:
            classifier = trace(model, input_shape).classifier()
        except AttackFailed as failed:
            raise ConfigError(f"defenses: precode cannot change this model: {failed}") from failed
        if classifier is None:
            raise ConfigError(
                "defenses: precode goes in front of the classifier, and no linear layer gives this "
                "model's logits; choose another model"
            )
        features = classifier.inputs.shape[1]
        bottleneck = VariationalBottleneck(features, width=self.width, beta=self.beta)
        head = model.get_submodule(classifier.name)
        together = nn.Sequential(OrderedDict(bottleneck=bottleneck, classifier=head))
        if not classifier.name:
            return together
        model.set_submodule(classifier.name, together)
        return model

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Forget what depends on the draw, and decode the mean in its place.

        The rows of the encoder that give the mean, and all layers below, were heard as any
        gradient: for one example, their quotient is the features (`closed-form`). The biases of
        the classifier still tell the labels.
        """
        if known.model is None:
            return seen, known
        still = copy.deepcopy(known.model)
        gone, masks = [], {}
        for name, module in still.named_modules():
            if not isinstance(module, VariationalBottleneck):
                continue
            module.still = True
            path = f"{name}." if name else ""
            gone += [f"{path}decoder.weight", f"{path}decoder.bias"]
            head = path.removesuffix("bottleneck.") + "classifier.weight"
            gone.append(head)
            for parameter in ("weight", "bias"):
                full = f"{path}encoder.{parameter}"
                if full in seen.update:
                    mask = torch.ones_like(seen.update[full], dtype=torch.bool)
                    mask[module.width :] = False
                    masks[full] = mask
        return strike(hide(seen, masks), gone), replace(known, model=still)


class VariationalBottleneck(nn.Module):
    """Encode as mean and deviation, draw, decode.

    Args:
        features: F, of what goes in and comes out, (B, F).
        width: D, dimensions of the code.
        beta: Weight of the penalty.
    """

    def __init__(self, features: int, *, width: int, beta: float) -> None:
        super().__init__()
        self.width = width
        self.beta = beta
        self.still = False
        self.encoder = nn.Linear(features, 2 * width)
        self.decoder = nn.Linear(width, features)
        self._penalty: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Return the decoded code; drawn in training mode, its mean in evaluation mode."""
        mean, spread = self.encoder(features).split(self.width, dim=-1)
        if self.still or not self.training:
            return self._decoded(mean)
        deviation = functional.softplus(spread)
        if torch.is_grad_enabled():
            variance = deviation.square()
            apart = (variance + mean.square() - 1 - variance.log()).sum(dim=-1) / 2
            self._penalty = self.beta * apart.mean()
        return self._decoded(mean + deviation * torch.randn_like(deviation))

    def take_penalty(self) -> Tensor | None:
        """Return what the last pass in training mode adds to the loss, once."""
        penalty, self._penalty = self._penalty, None
        return penalty

    def _decoded(self, code: Tensor) -> Tensor:
        decoded: Tensor = self.decoder(code)
        return decoded

    def __getstate__(self) -> dict[str, Any]:
        """Leave the penalty out of copies: it belongs to one pass."""
        return {**self.__dict__, "_penalty": None}
