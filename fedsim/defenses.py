"""Defenses by name, what each kind of them can do, and how an experiment's chain is built.

A defense acts in one place: on the model that everybody trains, inside local training, on the
update before it leaves the client, on the wire, or at the server. A chain lists them in that
order. What a class implements, of the protocols below, is what it does; one class may do several.
"""

import itertools
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from attacks.defense import KnownDefense, Untold
from attacks.observation import Loss, Tensors
from attacks.threats import Position
from fedsim.components import build
from fedsim.config import DefenseConfig, Experiment
from fedsim.errors import ConfigError
from fedsim.models.drawing import weights_from
from fedsim.privacy import Accounted
from fedsim.threat import threat_of

if TYPE_CHECKING:
    from flwr.serverapp.strategy import Strategy  # attack workers do without Flower

DEFENSES: dict[str, str] = {
    "gaussian-noise": "clients.defenses.noise:GaussianNoise",
    "laplacian-noise": "clients.defenses.noise:LaplacianNoise",
    "clip": "clients.defenses.clip:Clip",
    "fp16": "clients.defenses.casts:Float16",
    "bf16": "clients.defenses.casts:BFloat16",
    "int8": "clients.defenses.int8:Int8",
    "qsgd": "clients.defenses.qsgd:QSGD",
    "sign": "clients.defenses.sign:Sign",
    "prune": "clients.defenses.prune:Prune",
    "random-mask": "clients.defenses.random_mask:RandomMask",
    "dgc": "clients.defenses.dgc:DGC",
    "partial-sharing": "clients.defenses.partial_sharing:PartialSharing",
    "mixup": "clients.defenses.mixup:Mixup",
    "dp-sgd": "clients.defenses.dp_sgd:DPSGD",
    "local-dp": "clients.defenses.local_dp:LocalDP",
    "central-dp": "server.defenses.central_dp:CentralDP",
    "soteria": "clients.defenses.soteria:Soteria",
    "precode": "clients.defenses.precode:Precode",
    "outpost": "clients.defenses.outpost:Outpost",
    "censor": "clients.defenses.censor:Censor",
    "secure-aggregation": "clients.defenses.secure_aggregation:SecureAggregation",
    "tls": "clients.defenses.tls:TLS",
}
"""Defenses by the name that experiments use: `package.module:Name`."""


class Place(StrEnum):
    """Where a defense acts; a chain goes through these places in this order."""

    MODEL = "model"
    TRAINING = "training"
    UPDATE = "update"
    WIRE = "wire"
    SERVER = "server"


class Defense(KnownDefense, Protocol):
    """What every defense has: a place, and how an adversary who knows it reads a message.

    One that looks at a client's examples, and not only at its update, has an attribute
    `looks_at_data` that is true: it cannot follow differential privacy.
    """

    @property
    def place(self) -> Place:
        """Where it acts."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Situation:
    """Where a client stands when it defends an update.

    Attributes:
        kind: What `update` is: a gradient, or a change of weights.
        model: The client's model; it holds the weights received after one gradient, and those
            trained after local steps. A defense may change its weights, but not its mode.
        before: The parameters received, by name.
        loss: Training loss, mean over the batch.
        inputs: The examples behind the update, (B, C, H, W).
        labels: Their labels, (B,).
        learning_rate: Step size of the server for gradients, of the client for local steps.
        server_round: The round, from 1.
        num_rounds: Rounds of the experiment.
        memory: What this defense left for itself in this client's last round, by name; what is in
            here in the end is kept for the next. Empty at first.
        rng: A CPU generator of this client, round and link; the only source of randomness.
    """

    kind: Literal["gradient", "delta"]
    model: nn.Module
    before: Tensors
    loss: Loss
    inputs: Tensor
    labels: Tensor
    learning_rate: float
    server_round: int
    num_rounds: int
    memory: MutableMapping[str, Tensor]
    rng: torch.Generator


@runtime_checkable
class UpdateDefense(Protocol):
    """Changes an update before it leaves the client."""

    def apply(self, update: Tensors, at: Situation) -> dict[str, Tensor]:
        """Return what is sent in place of `update`: all parameters by name, shapes and dtypes kept.

        Args:
            update: Gradient or change of weights, by parameter name; not modified.
            at: Where the client stands.
        """


@runtime_checkable
class TrainingDefense(Protocol):
    """Changes how a client computes the gradient of a batch, in each of its steps.

    A chain has at most one: each takes the place of the plain gradient.
    """

    def gradient(
        self,
        model: nn.Module,
        loss: Loss,
        inputs: Tensor,
        labels: Tensor,
        *,
        batch_size: int,
        rng: torch.Generator,
    ) -> tuple[dict[str, Tensor], float]:
        """Return the gradient to train with, of trained parameters by name, and the mean loss.

        Args:
            model: In training mode, with the weights in force.
            loss: Mean over the batch.
            inputs: (B, C, H, W); B may be 0 for one that is `Sampling`.
            labels: (B,).
            batch_size: The number of examples that a batch is to have.
            rng: A CPU generator of this client, round and step.
        """


@runtime_checkable
class Sampling(TrainingDefense, Protocol):
    """A training defense that has a say in which examples a step uses."""

    def draw(self, num_examples: int, batch_size: int, rng: torch.Generator) -> Tensor | None:
        """Return the examples of a step, indices (B,) int64; None to leave it to the client.

        What a client announces is the number of examples that it would have used without.

        Args:
            num_examples: Those that the client holds.
            batch_size: The number of examples that a batch is to have.
            rng: A CPU generator of this client, round and step.
        """


@runtime_checkable
class ServerDefense(Protocol):
    """Changes how the server aggregates; whoever hears updates hears them as they were."""

    def around(self, strategy: "Strategy", seed: int, title: str) -> "Strategy":
        """Return what aggregates in place of `strategy`.

        Args:
            strategy: Told the outcome as if it had come from clients. If it has an attribute
                `wants_gradients` that is true, so must what is returned.
            seed: The experiment's; random numbers are those of streams named by `title` and round.
            title: How records call this link of the chain.
        """


@runtime_checkable
class ModelDefense(Protocol):
    """Changes the model that everybody trains."""

    def alter(self, model: nn.Module, input_shape: tuple[int, ...], num_classes: int) -> nn.Module:
        """Return the architecture to train in place of `model`.

        Weights that it adds are drawn from the global generator, which is seeded.

        Raises:
            ConfigError: It does not fit such a model.
        """


@runtime_checkable
class Penalising(Protocol):
    """A module, put into the model by a defense, that adds something to the training loss."""

    def take_penalty(self) -> Tensor | None:
        """Return what the last pass in training mode adds, mean over the batch; None if nothing."""


@runtime_checkable
class Particular(Protocol):
    """A defense that does not go with everything."""

    def check(self, experiment: Experiment, model: nn.Module) -> None:
        """Refuse, before a run, what it cannot defend.

        Args:
            experiment: As read.
            model: What everybody trains.

        Raises:
            ConfigError: It cannot; the message says what to change.
        """


def encrypts_links(chain: Mapping[str, Defense]) -> bool:
    """Whether who taps a link hears sizes alone: a defense says so by `encrypts_links`."""
    return any(getattr(defense, "encrypts_links", False) for defense in chain.values())


def hides_messages(experiment: Experiment) -> bool:
    """Whether the adversary of a run without a server hears sizes alone, where it listens."""
    position = threat_of(experiment).position
    if position is Position.RELAY:
        return experiment.protocol.encrypted
    encrypted = experiment.protocol.encrypted or encrypts_links(build_chain(experiment))
    return position is Position.LINK and encrypted


def build_defense(config: DefenseConfig) -> Defense:
    """Return the defense that an experiment names, with its settings.

    Raises:
        ConfigError: There is no such defense, or it does not take these options.
    """
    try:
        defense: Defense = build("defense", config.name, DEFENSES, options=config.options)
    except ConfigError as error:
        raise ConfigError(f"defenses.{config.title}: {error}") from error
    except ValueError as error:  # what dataclasses say of a value without meaning
        raise ConfigError(f"defenses.{config.title}: {error}") from error
    if not isinstance(defense, KnownDefense) or not hasattr(defense, "place"):
        raise ConfigError(
            f"defenses.{config.title} is no defense: {type(defense).__name__} must have `place` "
            "and `read`, as fedsim.defenses.Defense says"
        )
    return defense


def build_chain(experiment: Experiment) -> dict[str, Defense]:
    """Return the defenses of an experiment by title, in order.

    Raises:
        ConfigError: One cannot be built, or they are not in the order in which they act.
    """
    chain = {config.title: build_defense(config) for config in experiment.defenses}
    places = list(Place)
    titles = list(chain)
    for first, then in itertools.pairwise(titles):
        if places.index(chain[then].place) < places.index(chain[first].place):
            raise ConfigError(
                f"defenses: '{then}' acts on the {chain[then].place}, before '{first}', which acts "
                f"on the {chain[first].place}; list them in the order in which they act: "
                f"{', '.join(places)}"
            )
    _refuse_rivals(chain)
    return chain


def _refuse_rivals(chain: Mapping[str, Defense]) -> None:
    """Refuse two links of which one undoes what the other does."""
    for protocol, why in (
        (TrainingDefense, "both compute the gradients of local training"),
        (Accounted, "both give differential privacy, each with an epsilon of its own"),
    ):
        rivals = [title for title, one in chain.items() if isinstance(one, protocol)]
        if len(rivals) > 1:
            raise ConfigError(
                f"defenses: '{rivals[0]}' and '{rivals[1]}' {why}; leave out one of them"
            )
    private = next((title for title, one in chain.items() if isinstance(one, Accounted)), None)
    for title in itertools.dropwhile(lambda title: title != private, chain):
        if getattr(chain[title], "looks_at_data", False):
            raise ConfigError(
                f"defenses: '{title}' looks at the private data after '{private}' has hidden them, "
                f"which its epsilon does not count; leave out one of them"
            )


def accounted(chain: Mapping[str, Defense]) -> Accounted | None:
    """Return the link of a chain that gives differential privacy; None if there is none."""
    return next((one for one in chain.values() if isinstance(one, Accounted)), None)


def private_clients(chain: Mapping[str, Defense]) -> bool:
    """Whether clients give differential privacy themselves; they then send nothing besides."""
    return any(
        isinstance(one, Accounted) and one.place is not Place.SERVER for one in chain.values()
    )


def altered(
    model: nn.Module,
    defenses: Sequence[DefenseConfig],
    input_shape: tuple[int, ...],
    num_classes: int,
    *,
    rng: torch.Generator,
) -> nn.Module:
    """Return what everybody trains in place of `model` under these defenses, in training mode.

    Args:
        model: Freshly built.
        defenses: The chain; those that change no model play no part.
        input_shape: (C, H, W).
        num_classes: K.
        rng: The only source of the weights that they add.

    Raises:
        ConfigError: One does not fit the model.
    """
    for config in defenses:
        defense = build_defense(config)
        if isinstance(defense, ModelDefense):
            with weights_from(rng):
                model = defense.alter(model, input_shape, num_classes).train()
    return model


def with_penalties(loss: Loss, model: nn.Module) -> Loss:
    """Return `loss` with what modules of `model` add to it in its last pass.

    Args:
        loss: Mean over the batch.
        model: The one that gives the logits; a copy's penalties are not noticed.
    """
    modules = [module for module in model.modules() if isinstance(module, Penalising)]
    if not modules:
        return loss

    def penalised(logits: Tensor, labels: Tensor) -> Tensor:
        value = loss(logits, labels)
        for module in modules:
            penalty = module.take_penalty()
            value = value if penalty is None else value + penalty
        return value

    return penalised


def known_defenses(record: Sequence[Mapping[str, object]]) -> tuple[KnownDefense, ...]:
    """Return what an adversary knows of a chain, from the record of what it was told.

    Args:
        record: `name`, `label` and `options` of each link; where its options are None, it was told
            the name alone.
    """
    known: list[KnownDefense] = []
    for link in record:
        told = link["options"] is not None
        config = DefenseConfig.model_validate({**link, "options": link["options"] or {}})
        defense = build_defense(config)
        known.append(defense if told else Untold(defense=defense))
    return tuple(known)
