"""Make the network of peers that an experiment names."""

import functools
import json

from fedsim.config import Experiment
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
