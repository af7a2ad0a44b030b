"""The threat model of an experiment, with everything it is granted."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from itertools import compress

from attacks.threats import ACTIVE, RELAY, THREATS, UPLINK_TAP, Capability, Position, ThreatModel
from fedsim.catalog import nearest
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.files import Record

MEANING = {
    Capability.WEIGHTS: "hears the weights in force when the update was computed",
    Capability.ARCHITECTURE: "knows the model's architecture and the loss",
    Capability.INPUT_DOMAIN: "knows the shape of an input and the range of its values",
    Capability.BATCH_SIZE: "knows how many examples are behind an update",
    Capability.LOCAL_RECIPE: "knows how clients train: steps, learning rate, momentum",
    Capability.BATCHNORM_STATISTICS: "hears the running statistics of normalisation layers",
    Capability.TOPOLOGY: "knows who talks to whom, and with which weights peers average",
    Capability.DEFENSE: "knows which defenses are in force",
    Capability.PUBLIC_SAMPLE: "has examples of the same kind that belong to no client",
    Capability.LABELS: "ORACLE: is told the private labels; an upper bound, no real adversary",
    Capability.CHANGE_WEIGHTS: "sends clients weights of its own choice",
    Capability.CHANGE_ARCHITECTURE: "sends clients a model of its own choice",
}
"""What each capability means, for people."""


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where an adversary listens among peers.

    Attributes:
        peers: The peers that are its own, in order.
        links: (sender, receiver) of every direction that it taps, in order; None for all.
    """

    peers: tuple[int, ...] = ()
    links: tuple[tuple[int, int], ...] | None = ()

    def hear(self, sender: int, receiver: int) -> bool:
        """Whether a message from one peer to another is heard."""
        if self.links is None or sender in self.peers or receiver in self.peers:
            return True
        return (sender, receiver) in self.links


def threat_of(experiment: Experiment) -> ThreatModel:
    """Return the experiment's threat model, extra grants included.

    Without a server, `curious-server` is the relay: a hub such as Flower's carries every message
    between peers and hears them all, as a server does. In a network of peers that reach each other
    themselves there is no such place.

    Raises:
        ConfigError: There is no such threat model, or it cannot use what it is granted.
    """
    name = experiment.adversary.threat
    if name not in THREATS:
        raise ConfigError(f"adversary.threat: unknown threat '{name}'{nearest(name, THREATS)}")
    extra = frozenset(experiment.adversary.grants)
    threat = THREATS[name]
    threat = _among_peers(experiment, threat) if experiment.decentralised else _at_server(threat)
    if not threat.active and (active := extra & ACTIVE):
        first = next(str(capability) for capability in Capability if capability in active)
        raise ConfigError(
            f"adversary.grants: '{first}' is for adversaries that change what is sent; "
            f"'{name}' only listens; there are {_names(one.active for one in THREATS.values())}"
        )
    if threat.hears_sum:
        _check_sum(experiment, threat)
    return threat.with_grants(extra)


def _at_server(threat: ThreatModel) -> ThreatModel:
    if threat.position in _AMONG_PEERS:
        raise ConfigError(
            f"adversary.threat: '{threat.name}' is for peers that train without a server; set "
            "topology.name and protocol.name, or adversary.threat = 'curious-server'"
        )
    return threat


def _among_peers(experiment: Experiment, threat: ThreatModel) -> ThreatModel:
    """Return what a threat model is without a server."""
    if threat.name == "curious-server":
        threat = RELAY
    if threat.position is Position.SERVER:
        raise ConfigError(
            f"adversary.threat: '{threat.name}' sits at a server, which protocol "
            f"'{experiment.protocol.name}' does without; there are "
            f"{_names(one.position is not Position.SERVER for one in THREATS.values())}"
        )
    unheard = Capability.BATCHNORM_STATISTICS
    if unheard in experiment.adversary.grants:
        raise ConfigError(
            f"adversary.grants: '{unheard}' stay with each peer under protocol "
            f"'{experiment.protocol.name}'; leave it out"
        )
    if Capability.CHANGE_ARCHITECTURE in experiment.adversary.grants:
        raise ConfigError(
            "adversary.grants: 'change-architecture' is for servers; peers agree on a model "
            "beforehand; leave it out"
        )
    return replace(threat, grants=threat.grants - {unheard})


_AMONG_PEERS = (Position.NEIGHBOUR, Position.COALITION, Position.RELAY)


def places_of(experiment: Experiment) -> Places:
    """Return where the adversary of a decentralised experiment listens.

    Raises:
        ConfigError: There are no such peers, or they are too few or too many for the threat.
    """
    threat, scope = threat_of(experiment), experiment.adversary
    sits = threat.position in (Position.NEIGHBOUR, Position.COALITION)
    if scope.peers and not sits:
        raise ConfigError(
            f"adversary.peers is for adversaries that are peers themselves, which threat "
            f"'{threat.name}' is not; leave it out"
        )
    if scope.links != "all" and threat.position is not Position.LINK:
        raise ConfigError(
            f"adversary.links is for taps, and threat '{threat.name}' is none; leave it out"
        )
    if sits:
        return Places(peers=_own_peers(experiment, threat))
    if scope.links == "all":
        return Places(links=None)
    if not scope.links:
        raise ConfigError(
            "adversary.links must name at least one pair of peers, or be 'all', got none"
        )
    directions = set(scope.links)
    if scope.threat != UPLINK_TAP.name:  # that one hears what the first of each pair says
        directions |= {(receiver, sender) for sender, receiver in directions}
    return Places(links=tuple(sorted(directions)))


def _own_peers(experiment: Experiment, threat: ThreatModel) -> tuple[int, ...]:
    coalition = threat.position is Position.COALITION
    peers = experiment.adversary.peers or ([0, 1] if coalition else [0])
    own, num_peers = tuple(sorted(set(peers))), experiment.partition.clients
    if len(own) < len(peers) or (len(own) < 2 if coalition else len(own) != 1):
        wanted = "at least two different peers" if coalition else "exactly one peer"
        raise ConfigError(
            f"adversary.peers must be {wanted} for threat '{threat.name}', got {peers}"
        )
    if own[-1] >= num_peers:
        raise ConfigError(
            f"adversary.peers must be numbers from 0 to {num_peers - 1}, got {peers}; there are "
            f"{num_peers} peers (partition.clients)"
        )
    if not set(victims_of(experiment, own)):
        raise ConfigError(
            f"adversary.victims: none of {experiment.adversary.victims} is a peer other than the "
            f"adversary's own {list(own)}"
        )
    return own


def victims_of(experiment: Experiment, own: Collection[int]) -> tuple[int, ...]:
    """Return the peers whose updates an adversary is after, never its own, in order."""
    named = experiment.adversary.victims
    everybody = range(experiment.partition.clients)
    return tuple(
        peer for peer in everybody if peer not in own and (named == "all" or peer in named)
    )


def check_links(places: Places, edges: Collection[tuple[int, int]]) -> None:
    """Refuse to tap what is no link.

    Args:
        places: Where the adversary listens.
        edges: (sender, receiver) of every direction of every link, of all rounds.

    Raises:
        ConfigError: Two peers never speak to each other.
    """
    for sender, receiver in places.links or ():
        if (sender, receiver) not in edges and (receiver, sender) not in edges:
            raise ConfigError(
                f"adversary.links: there is no link between peers {sender} and {receiver} in this "
                "topology; `fedsim topology` draws it"
            )


def _names(wanted: Iterable[bool]) -> str:
    return ", ".join(f"'{name}'" for name in compress(THREATS, wanted))


def _check_sum(experiment: Experiment, threat: ThreatModel) -> None:
    """Refuse what an adversary that hears only means of gradients cannot be asked for."""
    if not threat.active and experiment.adversary.victims != "all":
        raise ConfigError(
            f"adversary.victims must be 'all' for threat '{threat.name}', which hears no client "
            f"alone, got {experiment.adversary.victims}"
        )
    steps = experiment.training.max_local_steps
    if experiment.training.algorithm == "fedavg" and steps != 1:
        raise ConfigError(
            f"threat '{threat.name}' hears means of gradients, and clients take several local "
            "steps; set training.max_local_steps = 1, or training.algorithm = 'fedsgd'"
        )


def threat_record(threat: ThreatModel, places: Places | None = None) -> Record:
    """Return the threat model as the run directory holds it; `places` of one among peers."""
    links = places and places.links
    return {
        "name": threat.name,
        "position": str(threat.position),
        "active": threat.active,
        "oracle": threat.oracle,
        "hears_sum": threat.hears_sum,
        "summary": threat.summary,
        "grants": [
            {"capability": str(capability), "meaning": MEANING[capability]}
            for capability in Capability
            if capability in threat.grants
        ],
        "peers": list(places.peers) if places is not None else [],
        "links": "all"
        if places is not None and links is None
        else [list(one) for one in links or ()],
    }
