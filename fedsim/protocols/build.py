"""Make the protocol that an experiment names."""

from fedsim.components import build
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.protocols import PROTOCOLS
from fedsim.protocols.peer_protocol import PeerProtocol
from fedsim.topologies.build import network_of


def protocol_of(experiment: Experiment) -> PeerProtocol:
    """Return the protocol between peers that an experiment names.

    Raises:
        ConfigError: There is none of this name, or it does not go with the rest.
    """
    config = experiment.protocol
    protocol: PeerProtocol = build("protocol", config.name, PROTOCOLS, options=config.options)
    if protocol.needs_gradient and experiment.training.algorithm != "fedsgd":
        raise ConfigError(
            f"protocol '{config.name}' sends gradients; set training.algorithm = 'fedsgd'"
        )
    try:
        protocol.check(network_of(experiment))
    except ValueError as error:
        raise ConfigError(f"protocol '{config.name}': {error}") from error
    return protocol
