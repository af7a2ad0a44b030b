"""Threat models: where the adversary sits, and what it is granted.

An attack says which capabilities it needs; a threat model says which it grants. What is not
granted never reaches the attack, and an attack that needs more is refused before a run starts.
"""

from dataclasses import dataclass
from enum import StrEnum


class Capability(StrEnum):
    """One thing an adversary may hear, know or do."""

    WEIGHTS = "weights"
    """Hears the weights in force when the update was computed."""
    ARCHITECTURE = "architecture"
    """Knows the model's architecture and loss."""
    INPUT_DOMAIN = "input-domain"
    """Knows the shape of an input and the range of its values."""
    BATCH_SIZE = "batch-size"
    """Knows how many examples are behind the update."""
    LOCAL_RECIPE = "local-recipe"
    """Knows how clients train: steps, learning rate, momentum."""
    BATCHNORM_STATISTICS = "batchnorm-statistics"
    """Hears the running statistics of normalisation layers that are in force."""
    TOPOLOGY = "topology"
    """Knows who talks to whom, and with which weights peers average."""
    DEFENSE = "defense"
    """Knows which defense is in force."""
    PUBLIC_SAMPLE = "public-sample"
    """Has examples of the same kind that belong to no client."""
    LABELS = "labels"
    """Oracle: is told the private labels. An upper bound, never a realistic adversary."""
    CHANGE_WEIGHTS = "change-weights"
    """May send weights of its own choice."""
    CHANGE_ARCHITECTURE = "change-architecture"
    """May send a model of its own choice."""


class Position(StrEnum):
    """Where the adversary sits."""

    SERVER = "server"
    LINK = "link"
    NEIGHBOUR = "neighbour"
    COALITION = "coalition"
    RELAY = "relay"


ACTIVE = frozenset({Capability.CHANGE_WEIGHTS, Capability.CHANGE_ARCHITECTURE})
ORACLE = frozenset({Capability.LABELS})

WHITE_BOX = frozenset(
    {
        Capability.WEIGHTS,
        Capability.ARCHITECTURE,
        Capability.INPUT_DOMAIN,
        Capability.BATCH_SIZE,
    }
)
"""What it takes to recompute the gradient of a guess."""

_PARTICIPANT = frozenset(
    {
        Capability.ARCHITECTURE,
        Capability.INPUT_DOMAIN,
        Capability.BATCH_SIZE,
        Capability.LOCAL_RECIPE,
    }
)


@dataclass(frozen=True, kw_only=True)
class ThreatModel:
    """Who the adversary is.

    Attributes:
        name: As experiments and reports write it.
        position: Where it sits.
        grants: What it hears, knows and may do.
        summary: One line for people.
        hears_sum: Whether all it hears is the mean of the updates of a round.
    """

    name: str
    position: Position
    grants: frozenset[Capability]
    summary: str
    hears_sum: bool = False

    @property
    def active(self) -> bool:
        """Whether it changes what is sent, instead of only listening."""
        return bool(self.grants & ACTIVE)

    @property
    def oracle(self) -> bool:
        """Whether it is told something no real adversary of this kind would know."""
        return bool(self.grants & ORACLE)

    def missing(self, needs: frozenset[Capability]) -> list[Capability]:
        """Return what `needs` asks for and this threat model does not grant, in a fixed order."""
        return [capability for capability in Capability if capability in needs - self.grants]

    def with_grants(self, extra: frozenset[Capability]) -> "ThreatModel":
        """Return the same adversary with more granted; the added grants show in its name."""
        added = [str(capability) for capability in Capability if capability in extra - self.grants]
        if not added:
            return self
        return ThreatModel(
            name=f"{self.name}+{'+'.join(added)}",
            position=self.position,
            grants=self.grants | extra,
            summary=self.summary,
            hears_sum=self.hears_sum,
        )


CURIOUS_SERVER = ThreatModel(
    name="curious-server",
    position=Position.SERVER,
    grants=_PARTICIPANT | {Capability.WEIGHTS, Capability.BATCHNORM_STATISTICS},
    summary="follows the protocol and remembers every update it receives",
)
LINK_TAP = ThreatModel(
    name="link-tap",
    position=Position.LINK,
    grants=_PARTICIPANT
    | {Capability.WEIGHTS, Capability.BATCHNORM_STATISTICS, Capability.TOPOLOGY},
    summary="hears chosen links in both directions, and knows how participants train",
)
UPLINK_TAP = ThreatModel(
    name="uplink-tap",
    position=Position.LINK,
    grants=_PARTICIPANT | {Capability.TOPOLOGY},
    summary="hears what chosen clients send, not what they receive: it has no weights",
)
MALICIOUS_SERVER = ThreatModel(
    name="malicious-server",
    position=Position.SERVER,
    grants=CURIOUS_SERVER.grants | ACTIVE,
    summary="remembers every update, and sends weights and models of its own choice",
)
AGGREGATE_SERVER = ThreatModel(
    name="aggregate-server",
    position=Position.SERVER,
    grants=CURIOUS_SERVER.grants,
    summary="follows secure aggregation: all it hears of a round is the mean of the updates",
    hears_sum=True,
)
MALICIOUS_AGGREGATE_SERVER = ThreatModel(
    name="malicious-aggregate-server",
    position=Position.SERVER,
    grants=CURIOUS_SERVER.grants | ACTIVE,
    summary="hears only the mean of a round, and sends each client weights of its own choice",
    hears_sum=True,
)
CURIOUS_NEIGHBOUR = ThreatModel(
    name="curious-neighbour",
    position=Position.NEIGHBOUR,
    grants=_PARTICIPANT | {Capability.WEIGHTS, Capability.TOPOLOGY},
    summary="is a peer that follows the protocol and remembers what its neighbours say to it",
)
COALITION = ThreatModel(
    name="coalition",
    position=Position.COALITION,
    grants=CURIOUS_NEIGHBOUR.grants,
    summary="is several peers that follow the protocol and put together what they hear",
)
ACTIVE_NEIGHBOUR = ThreatModel(
    name="active-neighbour",
    position=Position.NEIGHBOUR,
    grants=CURIOUS_NEIGHBOUR.grants | {Capability.CHANGE_WEIGHTS},
    summary="is a peer that remembers what it hears, and says what it likes",
)
RELAY = ThreatModel(
    name="relay",
    position=Position.RELAY,
    grants=CURIOUS_NEIGHBOUR.grants,
    summary="carries every message between peers, and remembers them all",
)

THREATS = {
    threat.name: threat
    for threat in (
        CURIOUS_SERVER,
        LINK_TAP,
        UPLINK_TAP,
        MALICIOUS_SERVER,
        AGGREGATE_SERVER,
        MALICIOUS_AGGREGATE_SERVER,
        CURIOUS_NEIGHBOUR,
        COALITION,
        ACTIVE_NEIGHBOUR,
        RELAY,
    )
}
"""Threat models an experiment may name."""
