"""The words every attack speaks: what was heard, what was known, and the guess made of it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.threats import Capability

if TYPE_CHECKING:
    from attacks.defense import KnownDefense, Noise
    from attacks.tabular.columns import Columns
    from attacks.text.tokens import Tokens

Tensors = Mapping[str, Tensor]
"""Tensors by parameter name."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, K), labels (B,) int64 or probabilities (B, K)) -> scalar mean over the batch."""


class AttackFailed(Exception):
    """The attack cannot invert this observation; the message says why.

    A result, not an accident: it is recorded as a failed attack beside the others.
    """


class Kind(StrEnum):
    """What the tensors of a message are."""

    GRADIENT = "gradient"
    """Gradient of the mean loss over one batch."""
    DELTA = "delta"
    """Weights after local training minus weights before."""
    WEIGHTS = "weights"
    """Weights after local training."""
    CHUNK = "chunk"
    """Part of the coordinates of a gradient; `visible` says which, or `update` names fewer."""
    MASKED_SHARE = "masked-share"
    AGGREGATE = "aggregate"
    """Mean of several clients' gradients, weighted by their numbers of examples."""
    SIZES_ONLY = "sizes-only"


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What the adversary heard of one message.

    Attributes:
        round: Round of the message, from 1.
        sender: Who sent it, as "client-3".
        receiver: Who it was meant for, as "server".
        kind: What the tensors are.
        update: The tensors heard, by parameter name; empty when only sizes were heard.
        visible: Per parameter, True where a coordinate was heard; None when all of `update` was.
        weights: The weights in force when the update was computed; None if not heard.
        buffers: Running statistics in force, by buffer name; None if not heard.
        buffers_after: Running statistics that the client sent back; None if not heard.
        num_examples: The number of examples that the message announces; None if it does not.
        num_bytes: Size of the message, where nothing but that was heard.
        isolated: Between peers, how `update` was told from what was heard: it was a message; it
            follows from messages, whatever other peers computed; or it is a best guess. None where
            clients send their updates to a server.
        expected_error: Between peers, the error of `update` to expect, root mean square over that
            of the update: of rounding if it is exact, of what was not heard if it is estimated.
        expected_weights_error: The same of `weights`; None where no rule tells it.
    """

    round: int
    sender: str
    receiver: str
    kind: Kind
    update: Tensors
    visible: Tensors | None = None
    weights: Tensors | None = None
    buffers: Tensors | None = None
    buffers_after: Tensors | None = None
    num_examples: int | None = None
    num_bytes: int | None = None
    isolated: Literal["heard", "exact", "estimated"] | None = None
    expected_error: float | None = None
    expected_weights_error: float | None = None


@dataclass(frozen=True, kw_only=True)
class LocalRecipe:
    """How a client turns the weights it receives into the update it sends.

    Attributes:
        num_steps: Optimizer steps per round; 1 means that the update is one gradient. Before a
            message is heard, the most that any client takes.
        learning_rate: Step size of local SGD; None when clients send gradients.
        momentum: Momentum of local SGD.
        num_epochs: Passes over the local data in one round, if `max_steps` does not end it.
        batch_size: Examples per step, the last one of an epoch may have fewer; None when all
            examples behind the update make one step.
        max_steps: Steps after which a client stops in any case; None for no such limit.
        proximal_mu: FedProx's pull of each step towards the weights received; it is 0 at the first.
        train_mode: Whether layers such as batch normalisation run in training mode.
    """

    num_steps: int = 1
    learning_rate: float | None = None
    momentum: float = 0.0
    num_epochs: int = 1
    batch_size: int | None = None
    max_steps: int | None = None
    proximal_mu: float = 0.0
    train_mode: bool = True

    def for_examples(self, num_examples: int) -> "LocalRecipe":
        """Return the recipe of a client that trained on `num_examples` different examples."""
        if self.learning_rate is None:
            return self
        steps = self.num_epochs * -(-num_examples // (self.batch_size or num_examples))
        return replace(self, num_steps=min(steps, self.max_steps or steps))


@dataclass(frozen=True, kw_only=True)
class Knowledge:
    """What the adversary knew beforehand; a field is None unless it was granted.

    Attributes:
        model: The architecture. Its own weights mean nothing: those in force are in the
            observation. Attacks never modify it.
        loss: The training loss, mean over the batch.
        input_shape: Shape of one input: (C, H, W) of images, (T,) of text, (D,) of tables.
        input_range: Lowest and highest value of an input.
        num_classes: K, as the width of the model's output.
        batch_size: B, the number of examples behind the update.
        labels: Oracle only: the private labels, shape (B,), int64.
        recipe: How clients train.
        public_sample: Inputs of the same kind that belong to no client, shape (N, C, H, W).
        tokens: Of text: its vocabulary, and what is predicted. Inputs are tokens (B, T), int64.
        columns: Of tables: what the coordinates of an input (D,) stand for.
        defenses: What clients do to an update before they send it, in order; see `attacks.defense`.
        noise: How exact what was heard is, where a defense that was read says so.
        length_known: Whether the length of an update means anything; after clipping, only its
            direction does.
        signs_only: Whether the sign of a coordinate is all that it says, and magnitudes mean
            nothing; see `attacks.matching.signs`.
    """

    model: nn.Module | None = None
    loss: Loss = functional.cross_entropy
    input_shape: tuple[int, ...] | None = None
    input_range: tuple[float, float] = (0.0, 1.0)
    num_classes: int | None = None
    batch_size: int | None = None
    labels: Tensor | None = None
    recipe: LocalRecipe | None = None
    public_sample: Tensor | None = None
    tokens: "Tokens | None" = None
    columns: "Columns | None" = None
    defenses: "tuple[KnownDefense, ...]" = ()
    noise: "Noise | None" = None
    length_known: bool = True
    signs_only: bool = False

    def __post_init__(self) -> None:
        """Refuse what no adversary can know.

        Raises:
            ValueError: A number below 1, an empty range, or a public sample of another shape.
        """
        for name in ("batch_size", "num_classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if self.input_shape is not None and not (self.input_shape and min(self.input_shape) > 0):
            raise ValueError(f"input_shape must be positive sizes, got {self.input_shape}")
        low, high = self.input_range
        if not low < high:
            raise ValueError(f"input_range must be (lowest, highest), got {self.input_range}")
        if self.public_sample is None or self.input_shape is None:
            return
        if tuple(self.public_sample.shape[1:]) != tuple(self.input_shape):
            raise ValueError(
                f"public_sample must hold inputs of shape {tuple(self.input_shape)}, "
                f"got {tuple(self.public_sample.shape[1:])}"
            )


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Where an attack stood after so many steps: its best guess by what it can see.

    Attributes:
        step: Steps taken.
        inputs: The guess, shape (B, C, H, W).
        matching_loss: The attacker-visible score of that guess; lower is better.
    """

    step: int
    inputs: Tensor
    matching_loss: float


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """The adversary's guess at one private batch.

    Attributes:
        inputs: Guessed inputs, shape (B, C, H, W), inside `Knowledge.input_range`, fewer than B
            for an attack that recovers some of a batch; None for one that recovers labels alone.
            Of text, tokens (B, T), int64, padded; of tables, rows (B, D).
        labels: Guessed labels, shape (B,), int64; None when the attack does not guess them.
        matching_loss: The score that chose this guess among the restarts, visible to the
            attacker; lower is better; None for an exact solution that matches nothing.
        steps: Optimizer steps, summed over nothing: restarts that run together count once.
        seconds: Wall time.
        finished: False when the time budget ended it early; the guess is the best so far.
        certified: Per guess, whether the attack has proved it, by recomputing what was heard from
            it, (B,) bool; None for an attack that proves nothing.
        confidence: Of rows of a table, what the attack says of its own certainty: per feature of
            each guess, (B, F), from 0 to 1, which is sure; None for an attack that says nothing.
        snapshots: How the guess came about, first to last.
        notes: What the attack wants the reader to know, by short name.
    """

    inputs: Tensor | None
    labels: Tensor | None
    matching_loss: float | None = None
    steps: int = 0
    seconds: float = 0.0
    finished: bool = True
    certified: Tensor | None = None
    confidence: Tensor | None = None
    snapshots: tuple[Snapshot, ...] = ()
    notes: Mapping[str, str | float] = field(default_factory=dict)


class Budget:
    """A wall-clock allowance that an attack asks about between steps.

    Args:
        seconds: The allowance; None means no limit. It starts running at construction.
    """

    def __init__(self, seconds: float | None = None) -> None:
        self.start = time.monotonic()
        self.seconds = seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.start

    @property
    def spent(self) -> bool:
        """Whether the allowance is used up."""
        return self.seconds is not None and self.elapsed >= self.seconds


@runtime_checkable
class Attack(Protocol):
    """Settings at construction, observation at the call, nothing else.

    One that can be given several rounds of a victim at once says so by an attribute `joins`: True
    for any number, else how many it must be. Without one, it inverts one observation at a time.
    """

    @property
    def needs(self) -> frozenset[Capability]:
        """The capabilities without which this attack, with these settings, cannot run."""

    def check(self, known: Knowledge) -> None:
        """Refuse, before anything is heard, what could never be inverted.

        Args:
            known: What will be granted, as far as it is the same for all messages.

        Raises:
            AttackFailed: No observation could be inverted with this knowledge.
        """

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the batch behind what was seen.

        Args:
            seen: One victim's observation, or several rounds of the same victim.
            known: What was granted.
            rng: A CPU generator; the only source of randomness.
            budget: Wall-clock allowance; without one the attack runs to its end.

        Raises:
            AttackFailed: The observation cannot be inverted; the message says why.
        """


@runtime_checkable
class ManyAtOnce(Attack, Protocol):
    """An attack that inverts several victims in one computation, faster than one by one."""

    def many(
        self,
        seen: Sequence[Observation],
        known: Sequence[Knowledge],
        *,
        rngs: Sequence[torch.Generator],
        budget: Budget | None = None,
    ) -> list[Reconstruction | AttackFailed]:
        """Guess the batch behind each observation, each as if it were alone.

        Args:
            seen: One observation per victim.
            known: What was granted about each.
            rngs: One CPU generator per victim, so that company changes nobody's random numbers.
            budget: Wall-clock allowance for all of them together.

        Returns:
            One guess per victim, in order; the failure for one that cannot be inverted.
        """


@runtime_checkable
class ActiveAttack(Attack, Protocol):
    """An attack by a server that changes what it sends; the observation shows what was sent."""

    def implant(
        self, model: nn.Module, input_shape: tuple[int, ...], num_classes: int
    ) -> nn.Module:
        """Return the architecture that clients are made to train in place of `model`.

        An attack that changes weights alone returns `model`. Weights of layers that it adds are
        drawn or set here; those of `model` stay as they are.

        Raises:
            AttackFailed: Nothing can be added to such a model.
        """

    def tamper(
        self,
        weights: Tensors,
        known: Knowledge,
        *,
        receiver: str,
        target: str,
        earlier: Sequence[Observation],
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        """Return the weights to send in place of those in force, by parameter name.

        Args:
            weights: Those in force; not modified.
            known: What was granted.
            receiver: The client that they are sent to.
            target: The client that is attacked in this round; the receiver itself, unless only
                the mean of all updates is heard.
            earlier: What was heard of the target in earlier rounds, in order.
            rng: A CPU generator; the only source of randomness.
        """


def only(seen: Observation | Sequence[Observation]) -> Observation:
    """Return the single observation of `seen`, for attacks that invert one message.

    Raises:
        AttackFailed: `seen` holds none or several.
    """
    if isinstance(seen, Observation):
        return seen
    if len(seen) != 1:
        raise AttackFailed(f"this attack inverts one observation at a time, got {len(seen)}")
    return seen[0]


def rounds_of(seen: Observation | Sequence[Observation]) -> list[Observation]:
    """Return the observations of `seen` in order, for attacks that take one or several."""
    return [seen] if isinstance(seen, Observation) else list(seen)


def require_one_step(recipe: LocalRecipe | None) -> None:
    """Refuse updates that are known to be more than one gradient.

    Raises:
        AttackFailed: Clients take several steps before they send.
    """
    if recipe is not None and recipe.num_steps != 1:
        raise AttackFailed(
            f"an update is the sum of up to {recipe.num_steps} local steps, not one gradient; "
            "choose an attack that replays the steps (inverting-gradients, dlg, fedavg-epochs) or "
            "does without them (surrogate), or let clients take one: training.max_local_steps = 1"
        )


def gradient_of(seen: Observation, recipe: LocalRecipe | None) -> dict[str, Tensor]:
    """Return the mean-loss gradient that `seen` carries, by parameter name.

    A gradient is returned as it is, and so is the part of one that a chunk holds. After exactly
    one local step of plain SGD, the delta is minus the learning rate times the gradient, and
    weights are delta plus the weights in force.

    Raises:
        AttackFailed: The update is not one gradient (several local steps, momentum does not
            matter for a single step), or what is needed to read it was not heard or granted.
    """
    if seen.kind in (Kind.DELTA, Kind.WEIGHTS):
        require_one_step(recipe)
    return pseudo_gradient_of(seen, recipe)


def pseudo_gradient_of(seen: Observation, recipe: LocalRecipe | None) -> dict[str, Tensor]:
    """Return what clients took off their weights, divided by the learning rate, by name.

    That is the gradient after one step, and about the sum of the gradients after several.

    Raises:
        AttackFailed: What is needed to read it was not heard or granted, or nothing sound was.
    """
    _require_sound(seen)
    if seen.kind is Kind.AGGREGATE and recipe is not None and recipe.num_steps != 1:
        raise AttackFailed(
            f"behind the mean of a round are up to {recipe.num_steps} local steps of each client, "
            "not one gradient; let clients take one: training.max_local_steps = 1"
        )
    if seen.kind in (Kind.GRADIENT, Kind.AGGREGATE, Kind.CHUNK):
        return dict(seen.update)
    if seen.kind is Kind.MASKED_SHARE:
        raise AttackFailed(
            f"a message of kind '{seen.kind}' looks uniformly random to whoever lacks its masks; "
            "attack the mean of the round, where it was heard"
        )
    if seen.kind not in (Kind.DELTA, Kind.WEIGHTS):
        raise AttackFailed(f"a message of kind '{seen.kind}' does not carry one client's gradient")
    if recipe is not None and recipe.learning_rate == 0:
        raise AttackFailed("a learning rate of 0 moves no weights: there is no gradient to read")
    if recipe is None or recipe.learning_rate is None:
        raise AttackFailed(
            f"reading a gradient from '{seen.kind}' needs the client's learning rate; "
            "grant 'local-recipe', or choose an attack that does without it (surrogate, "
            "estimated-recipe)"
        )
    return {name: delta / -recipe.learning_rate for name, delta in delta_of(seen).items()}


def delta_of(seen: Observation) -> dict[str, Tensor]:
    """Return the weights after local training minus those before, by parameter name.

    Raises:
        AttackFailed: The message holds neither weights nor their change, or the weights in force,
            which are needed to read new ones, were not heard, or nothing sound was heard.
    """
    _require_sound(seen)
    if seen.kind is Kind.DELTA:
        return dict(seen.update)
    if seen.kind is not Kind.WEIGHTS:
        raise AttackFailed(f"a message of kind '{seen.kind}' holds no change of weights")
    if seen.weights is None:
        raise AttackFailed("reading a gradient from new weights needs the old ones; none heard")
    return {
        name: after - seen.weights[name]
        for name, after in seen.update.items()
        if name in seen.weights
    }


def _require_sound(seen: Observation) -> None:
    """Refuse a message whose parts do not fit together.

    Raises:
        AttackFailed: It names no tensor, or a tensor's shape is not that of its mask or of the
            weights in force.
    """
    if not seen.update and seen.kind is not Kind.SIZES_ONLY:
        raise AttackFailed("the message names no parameter: nothing was heard")
    for name, tensor in seen.update.items():
        for what, others in (("mask", seen.visible), ("weights in force", seen.weights)):
            other = (others or {}).get(name)
            if other is not None and other.shape != tensor.shape:
                raise AttackFailed(
                    f"what was heard of '{name}' has shape {tuple(tensor.shape)}, its {what} "
                    f"{tuple(other.shape)}"
                )
