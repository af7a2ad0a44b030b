"""Make the network of peers that an experiment names."""

import functools
import json
from collections.abc import Sequence
from typing import Any

from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.protocols import SERVER
from fedsim.sections import override
from fedsim.topologies.network import PeerNetwork


def network_of(experiment: Experiment) -> PeerNetwork:
    """Return the peers of a decentralised experiment and their links; one object per experiment.

    Raises:
        ConfigError: There is no such graph of so many peers; the message says what to change.
    """
    topology = experiment.topology
    return _network(
        topology.name,
        experiment.partition.clients,
        json.dumps(topology.options, sort_keys=True),
        topology.mixing,
        experiment.seed,
        topology.resample_every,
    )


def network_of_topology(
    name: str,
    *,
    num_peers: int,
    options: Sequence[str] = (),
    mixing: str = "metropolis",
    seed: int = 0,
    resample_every: int | None = None,
) -> PeerNetwork:
    """Return so many peers on a graph given as on a command line; `options` are `key=value`.

    Raises:
        ConfigError: There is no such graph of so many peers; the message says what to change.
    """
    if name == SERVER:
        raise ConfigError(f"'{SERVER}' is no graph of peers; see `fedsim list topologies`")
    values: dict[str, Any] = {}
    for option in options:
        override(values, option, flag="--option")
    return PeerNetwork(
        name=name,
        num_peers=num_peers,
        options=values,
        mixing_name=mixing,
        seed=seed,
        resample_every=resample_every,
    )


@functools.lru_cache(maxsize=8)
def _network(
    name: str,
    num_peers: int,
    options: str,
    mixing: str,
    seed: int,
    resample_every: int | None,
) -> PeerNetwork:
    return PeerNetwork(
        name=name,
        num_peers=num_peers,
        options=json.loads(options),
        mixing_name=mixing,
        seed=seed,
        resample_every=resample_every,
    )
