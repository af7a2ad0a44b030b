"""Who the adversary is, and what it is told."""

from typing import Any, Literal

from attacks.threats import Capability, Position
from fedsim.schemas.data import ColumnRecord, TokensRecord
from fedsim.schemas.document import Count, Document


class Grant(Document):
    """One thing the adversary may hear, know or do."""

    capability: Capability
    """As experiments name it."""
    meaning: str
    """For people."""


class Threat(Document):
    """`threat.json`: who the adversary is."""

    name: str
    """As experiments name it; grants beyond those of the named threat model follow after `+`."""
    position: Position
    """Where it sits."""
    active: bool
    """Whether it changes what is sent."""
    oracle: bool
    """Whether it is told something no real adversary would know."""
    hears_sum: bool = False
    """Whether all it hears of a round is the mean of the updates."""
    summary: str
    """One line for people."""
    grants: list[Grant]
    """All that it is granted."""
    peers: list[Count] = []
    """Peers that are its own, where it is one or several of them."""
    links: Literal["all"] | list[tuple[Count, Count]] = []
    """[sender, receiver] of every direction between peers that it taps; all for a relay."""


class AttackName(Document):
    """An attack that has clients train another model."""

    name: str
    """As experiments name it."""
    label: str
    """As records and reports call it; empty for its name."""
    options: dict[str, Any]
    """Its settings."""


class ModelDefenseName(Document):
    """A defense that changes the model that everybody trains."""

    name: str
    """As experiments name it."""
    label: str
    """As records and reports call it; empty for its name."""
    options: dict[str, Any]
    """Its settings."""


class ModelName(Document):
    """An architecture."""

    name: str
    """As experiments name it."""
    options: dict[str, Any]
    """Its settings."""
    altered_by: list[ModelDefenseName] = []
    """The defenses that changed it, in order; before an active attack did."""
    implanted_by: AttackName | None = None
    """The active attack that was asked to change it; null if there is none."""


class Recipe(Document):
    """How clients train."""

    num_steps: Count
    """Optimizer steps per round, the most that any client takes."""
    learning_rate: float | None
    """Of local SGD; null where clients send gradients."""
    momentum: float
    """Of local SGD."""
    num_epochs: Count
    """Passes over the local data in a round, if `max_steps` does not end it."""
    batch_size: Count | None = None
    """Examples per step; null where all examples behind an update make one step."""
    max_steps: Count | None = None
    """Steps after which a client stops in any case; null for no such limit."""
    proximal_mu: float = 0.0
    """FedProx's pull of each step towards the weights received."""
    train_mode: bool
    """Whether layers run in training mode."""


class DefenseName(Document):
    """A link of the chain of defenses that the adversary is told of."""

    name: str
    """As experiments name it."""
    label: str
    """As records and reports call it; empty for its name."""
    options: dict[str, Any] | None
    """Its settings; null where the adversary is told the name alone."""


class KnowledgeRecord(Document):
    """`knowledge.json`: what attacks are told; a key is there only if the threat grants it."""

    model: ModelName | None = None
    """The architecture."""
    loss: str | None = None
    """Training loss."""
    num_classes: Count | None = None
    """Width of the model's output."""
    input_shape: list[int] | None = None
    """Shape of one input: [C, H, W] of images, [T] of text, [D] of tables."""
    tokens: TokensRecord | None = None
    """Of text, its vocabulary and what is predicted."""
    columns: list[ColumnRecord] | None = None
    """Of a table, its features."""
    input_range: tuple[float, float] | None = None
    """Lowest and highest value of an input."""
    batch_size: Count | None = None
    """Different examples behind an update, the most of any client; a message that announces its
    number of examples overrules it."""
    recipe: Recipe | None = None
    """How clients train."""
    defenses: list[DefenseName] | None = None
    """What clients do to an update before they send it, in order."""
    labels: Literal["oracle"] | None = None
    """Whether private labels are told; they lie in `oracle/`."""


class OracleLabels(Document):
    """`oracle/round-RRRRR-CLIENT.json`: private labels, where the threat grants them."""

    labels: list[int]
    """In the order of the private batch."""
