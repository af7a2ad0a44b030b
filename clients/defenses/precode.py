"""PRECODE: a variational bottleneck in front of the classifier.

Scheliga et al., WACV 2022, https://arxiv.org/abs/2108.04725. What reaches the classifier is
encoded as the mean and the deviation of a normal distribution with fewer dimensions; a draw from
it is decoded. Gradients above the encoder depend on the draw, which nobody else can repeat, so a
guess of the input has no gradient to be compared with. The loss is the usual one plus `beta` times
the Kullback-Leibler divergence of the code from the standard normal distribution.

The deviation is a softplus of the encoder's output, as in the published code. Ours: the divergence
is counted in nats, there in bits, which makes `beta` 1.44 times as large; and in evaluation mode
the mean is decoded, and nothing is drawn.
"""

import copy
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.defense import strike
from attacks.network import all_visible, trace
from attacks.observation import AttackFailed, Knowledge, Loss, Observation, gradient_of
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
        together = _Head(bottleneck, head)
        if not classifier.name:
            return together
        model.set_submodule(classifier.name, together)
        return model

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Forget what was computed from the draw alone; take the rest without it.

        Whatever was drawn, the encoder's bias gradient is the derivative of the loss at its output
        (the sum over a batch). For one example that is all that layers below need: their gradients
        are those of a model that is handed this derivative, and nothing of it is random. For
        several, the mean is decoded, and gradients are near those heard at best. The classifier's
        bias still tells the labels.
        """
        if known.model is None:
            return seen, known
        model = copy.deepcopy(known.model)
        gone: list[str] = []
        derivative = None
        for name, head in list(model.named_modules()):
            if isinstance(head, _Head):
                derivative = _derivative(seen, known, f"{name}.bottleneck.encoder.bias".lstrip("."))
                decided = _Decided(head, derivative)
                if name:
                    model.set_submodule(name, decided)
                else:
                    model = decided
                lost = ("bottleneck.decoder.weight", "bottleneck.decoder.bias", "classifier.weight")
                gone += [f"{name}.{parameter}".lstrip(".") for parameter in lost]
        if derivative is not None:
            known = replace(known, loss=_told(known.loss))
        return strike(seen, gone), replace(known, model=model)


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
        self.encoder = nn.Linear(features, 2 * width)
        self.decoder = nn.Linear(width, features)
        self._penalty: Tensor | None = None

    def forward(self, features: Tensor) -> Tensor:
        """Return the decoded code; drawn in training mode, its mean in evaluation mode."""
        mean, spread = self.encoder(features).split(self.width, dim=-1)
        if not self.training:
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


class _Head(nn.Sequential):
    """The bottleneck and the classifier, in place of the classifier alone."""

    bottleneck: VariationalBottleneck
    classifier: nn.Module

    def __init__(self, bottleneck: VariationalBottleneck, classifier: nn.Module) -> None:
        super().__init__(OrderedDict(bottleneck=bottleneck, classifier=classifier))


class _Decided(nn.Module):
    """A head without a draw: the mean is decoded, and what comes back may be told.

    Args:
        head: Whose layers these are.
        derivative: Of the loss at the encoder's output, (2 D,), for a loss of `_told`; None for
            the one that decoding the mean gives.
    """

    derivative: Tensor | None

    def __init__(self, head: _Head, derivative: Tensor | None) -> None:
        super().__init__()
        self.bottleneck, self.classifier = head.bottleneck, head.classifier
        self.register_buffer("derivative", derivative, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits of the mean, (B, K)."""
        encoded: Tensor = self.bottleneck.encoder(features)
        mean = encoded[:, : self.bottleneck.width]
        if self.derivative is None:
            logits: Tensor = self.classifier(self.bottleneck.decoder(mean))
            return logits
        logits = self.classifier(self.bottleneck.decoder(mean.detach()))
        back = (encoded * self.derivative).sum(dim=1, keepdim=True)
        # zero, but the mean of the logits has this derivative, and no other
        back = back - logits.mean(dim=1, keepdim=True)
        return logits + (back - back.detach())


def _told(loss: Loss) -> Loss:
    """Return a loss whose derivative is that of `loss` and of the mean logit together.

    Cross-entropy does not depend on the mean logit, so each comes alone to where it belongs.
    """

    def both(logits: Tensor, labels: Tensor) -> Tensor:
        return loss(logits, labels) + logits.mean()

    return both


def _derivative(seen: Observation, known: Knowledge, bias: str) -> Tensor | None:
    """Return the derivative of one example's loss at the encoder's output; None if not heard."""
    if known.batch_size != 1 or not all_visible(seen.visible, bias):
        return None
    try:
        return gradient_of(seen, known.recipe).get(bias)
    except AttackFailed:  # several steps: no single derivative
        return None
