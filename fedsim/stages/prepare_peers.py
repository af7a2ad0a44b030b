"""Check what an experiment without a server asks for, before anything starts."""

from collections.abc import Mapping

from fedsim.config import Experiment, ServerConfig
from fedsim.defenses import Defense, Place
from fedsim.errors import ConfigError
from fedsim.files import Record
from fedsim.protocols.build import protocol_of
from fedsim.protocols.peer_protocol import MessageKind
from fedsim.secure_sum.settings import Settings
from fedsim.threat import check_links, places_of, threat_of
from fedsim.topologies.build import network_of

_SERVER_ONLY = ("strategy", "options", "clients_per_round", "evaluate_clients")
"""Settings of a server that a relay has no use for."""


def check_peers(experiment: Experiment, chain: Mapping[str, Defense]) -> None:
    """Refuse what needs a server, and a protocol that does not run on the topology.

    Raises:
        ConfigError: The message says what to change.
    """
    network = network_of(experiment)
    protocol = protocol_of(experiment)
    if threat_of(experiment).active and protocol.kinds != {MessageKind.MODEL}:
        raise ConfigError(
            "an active neighbour changes the models that are averaged, and protocol "
            f"'{experiment.protocol.name}' sends more or other than models; set protocol.name = "
            "'d-psgd', or adversary.threat = 'curious-neighbour'"
        )
    rounds = range(1, experiment.rounds + 1) if network.varies else [1]
    check_links(places_of(experiment), {edge for one in rounds for edge in network.edges(one)})
    plain = ServerConfig()
    for name in _SERVER_ONLY:
        if getattr(experiment.server, name) != getattr(plain, name):
            raise ConfigError(
                f"server.{name} is for experiments with a server, protocol "
                f"'{experiment.protocol.name}' has none; leave it out"
            )
    if experiment.clients.checks:
        raise ConfigError(
            "clients.checks look at what a server sends, protocol "
            f"'{experiment.protocol.name}' has none; leave them out"
        )
    for title, defense in chain.items():
        if defense.place is Place.SERVER or isinstance(defense, Settings):
            raise ConfigError(
                f"defense '{title}' needs a server, protocol '{experiment.protocol.name}' has "
                "none; leave it out, or choose one that acts on the update"
            )


def topology_record(experiment: Experiment) -> Record:
    """Return who may speak to whom, as the run directory holds it."""
    return network_of(experiment).record()
