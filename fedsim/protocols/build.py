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
    config, network = experiment.protocol, network_of(experiment)
    try:
        protocol = build("protocol", config.name, PROTOCOLS, options=config.options)
    except ConfigError:
        raise
    except ValueError as error:  # what dataclasses say of a value without meaning
        raise ConfigError(f"protocol.options: {error}") from error
    if not isinstance(protocol, PeerProtocol):
        raise ConfigError(
            f"protocol '{config.name}' is no protocol: {type(protocol).__name__} must have all "
            "that fedsim.protocols.peer_protocol.PeerProtocol says"
        )
    if protocol.needs_gradient and experiment.training.update_kind != "gradient":
        raise ConfigError(
            f"protocol '{config.name}' sends gradients, but training.algorithm is "
            f"'{experiment.training.algorithm}'; set it to 'fedsgd', or take protocol 'd-psgd'"
        )
    if getattr(protocol, "needs_same_start", False) and config.start != "same":
        raise ConfigError(
            f"protocol '{config.name}' needs peers that begin alike, got protocol.start = "
            f"'{config.start}'; set it to 'same', or take protocol 'd-psgd'"
        )
    try:
        protocol.check(network)
    except ValueError as error:
        raise ConfigError(f"topology.name: {error}") from error
    return protocol
