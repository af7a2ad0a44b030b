"""Partial sharing: only some layers of the update are sent.

FedPer (Arivazhagan et al., 2019, https://arxiv.org/abs/1912.00818) shares the body of a network and
not its classifier, LG-FedAvg (Liang et al., 2020, https://arxiv.org/abs/2001.01523) shares its last
layers alone. Differs from both: a client does not keep layers of its own. What it does not send is
sent as a change of zero, and the server averages that: these layers stay as they are for everybody,
for as long as no client sends them.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from attacks.defense import strike
from attacks.network import trace
from attacks.observation import Kind, Knowledge, Observation, Tensors
from clients.defenses.zeros import moved
from fedsim.config import Experiment
from fedsim.defenses import Place, Situation
from fedsim.errors import ConfigError
from fedsim.setup import task_of

Part = Literal["body", "classifier", "first", "last", "named"]
"""Which layers are sent."""


@dataclass(frozen=True, kw_only=True)
class PartialSharing:
    """Sends some layers of the update, and no change of the others.

    Attributes:
        part: What is sent: all but the classifier, the classifier alone, the first or the last
            layers with parameters, or those named.
        layers: How many, for `first` and `last`.
        names: Patterns of parameter names for `named`, such as `conv*` or `*.bias`.
    """

    part: Part = "body"
    layers: int = 1
    names: tuple[str, ...] = ()

    place: ClassVar[Place] = Place.UPDATE

    def __post_init__(self) -> None:
        """Refuse settings that do not say what is sent."""
        if self.layers < 1:
            raise ValueError(f"layers must be at least 1, got {self.layers}")
        if (self.part == "named") != bool(self.names):
            raise ValueError(
                f"names must be given for part 'named' and for no other, got {list(self.names)} "
                f"for '{self.part}'"
            )

    def check(self, experiment: Experiment, model: nn.Module) -> None:
        """Refuse models of which nothing would be sent."""
        shape = task_of(experiment).input_shape if self.part in ("body", "classifier") else ()
        sent = self.sent(model, shape)
        for pattern in self.names:
            if not any(fnmatchcase(name, pattern) for name in sent):
                raise ConfigError(
                    f"partial-sharing: no parameter is called '{pattern}'; there are "
                    f"{', '.join(name for name, _ in model.named_parameters())}"
                )
        if not sent:
            raise ConfigError(
                f"partial-sharing: part '{self.part}' of {type(model).__name__} holds no parameter "
                "(its logits may come from no linear layer); set part = 'named' and give names"
            )

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Send what is shared, and zeros for the rest."""
        sent = self.sent(at.model, tuple(at.inputs.shape[1:]))
        return {
            name: tensor if name in sent else torch.zeros_like(tensor)
            for name, tensor in update.items()
        }

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Forget parameters that are zero everywhere: nobody sent them."""
        seen = moved(seen)
        if seen.kind is Kind.WEIGHTS:
            return seen, known
        return strike(seen, [name for name, t in seen.update.items() if not bool(t.any())]), known

    def sent(self, model: nn.Module, input_shape: tuple[int, ...]) -> set[str]:
        """Return the names of the parameters that are sent.

        Args:
            model: Its parameters are told apart by the layer that they belong to.
            input_shape: Shape of one input, where the classifier has to be found.
        """
        names = [name for name, _ in model.named_parameters()]
        if self.part == "named":
            return {n for n in names if any(fnmatchcase(n, pattern) for pattern in self.names)}
        if self.part in ("first", "last"):
            layers = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
            chosen = layers[: self.layers] if self.part == "first" else layers[-self.layers :]
            return {name for name in names if name.rpartition(".")[0] in chosen}
        layer = trace(model, input_shape).classifier()
        if layer is None:
            return set()
        own = {layer.parameter(name) for name, _ in layer.module.named_parameters()}
        return own if self.part == "classifier" else set(names) - own
