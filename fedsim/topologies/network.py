"""Who may speak to whom in each round of an experiment, and with which weights they average."""

import contextlib
import functools
import inspect
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

import networkx as nx
import numpy as np

from fedsim.components import build, find
from fedsim.errors import ConfigError
from fedsim.files import Record
from fedsim.seeds import numpy_stream
from fedsim.topologies import TOPOLOGIES
from fedsim.topologies.graph import PeerGraph, is_connected, refuse_parts, sound
from fedsim.topologies.mixing import Weights
from fedsim.topologies.random_graphs import NotConnected
from fedsim.topologies.snapshot import Facts, Snapshot

KEPT = 32
"""Rounds with a graph of their own that are remembered, to be asked for again."""
PATIENCE = 100
"""Times that a random graph is asked for after round 1: a run that could begin shall not end."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PeerNetwork:
    """The peers of an experiment and their links, round by round; the same from the same seed.

    Whatever a method returns is shared and not to be changed.

    Attributes:
        name: From `fedsim list topologies`, or the user's own `package.module:Name`: called as
            `factory(num_peers, **options)` and given `rng`, a numpy generator, and
            `server_round`, from 1, if it asks for them; returns a networkx graph.
        num_peers: N, at least 2.
        options: What the user wrote.
        mixing_name: From `fedsim list mixings`.
        seed: Of the experiment.
        resample_every: Rounds for which a graph drawn at random is kept; None for all.

    Raises:
        ConfigError: There is no such graph, or a part of it hears nothing of another.
    """

    name: str
    num_peers: int
    options: Mapping[str, object] = field(default_factory=dict)
    mixing_name: str = "metropolis"
    seed: int = 0
    resample_every: int | None = None
    _snapshots: dict[int, Snapshot] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        if self.num_peers < 2:
            raise ConfigError(
                f"topology '{self.name}' needs at least 2 peers, got {self.num_peers}; raise "
                "partition.clients"
            )
        if self.resample_every is not None and "rng" not in self._asks_for:
            raise ConfigError(
                f"topology.resample_every is for graphs drawn at random, such as random-regular; "
                f"'{self.name}' is not, leave it out"
            )
        _ = self.snapshot(1).weights  # refuses what the rule of weights refuses
        self._must_be_connected()

    @cached_property
    def _asks_for(self) -> frozenset[str]:
        """What the factory wants to be given."""
        factory = find("topology", self.name, TOPOLOGIES)
        try:
            return frozenset(inspect.signature(factory).parameters)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"topology '{self.name}' cannot be called: {error}") from error

    @property
    def varies(self) -> bool:
        """Whether the graph changes from round to round."""
        return self.resample_every is not None or "server_round" in self._asks_for

    @property
    def directed(self) -> bool:
        """Whether somebody may speak to a peer that does not speak to it."""
        return self.graph(1).is_directed()

    def graph(self, server_round: int) -> PeerGraph:
        """Return the graph of a round, frozen; an `nx.DiGraph` if it is directed."""
        return self.snapshot(server_round).graph

    def edges(self, server_round: int) -> tuple[tuple[int, int], ...]:
        """Return (sender, receiver) of every direction of every link in a round, in order."""
        return self.snapshot(server_round).edges

    def links(self, server_round: int) -> tuple[tuple[int, int], ...]:
        """Return each link once, in order: (lower, higher), or (sender, receiver) if directed."""
        return self.snapshot(server_round).links

    def senders(self, server_round: int, peer: int) -> tuple[int, ...]:
        """Return whom a peer hears in a round, in order."""
        return self.snapshot(server_round).senders[peer]

    def receivers(self, server_round: int, peer: int) -> tuple[int, ...]:
        """Return to whom a peer speaks in a round, in order."""
        return self.snapshot(server_round).receivers[peer]

    def mixing(self, server_round: int) -> np.ndarray:
        """Return the mixing matrix, (N, N), float64; row i is what peer i gives to each sender."""
        return self.snapshot(server_round).matrix

    def rational_mixing(self, server_round: int) -> Weights:
        """Return the mixing matrix as fractions by (row, column), without its zeros."""
        return self.snapshot(server_round).weights

    def facts(self, server_round: int) -> Facts:
        """Return what can be said of the graph of a round."""
        return self.snapshot(server_round).facts

    def record(self, server_round: int = 1) -> Record:
        """Return what `topology.json` holds; links and facts are those of this round."""
        return {
            "name": self.name,
            "options": dict(self.options),
            "mixing": self.mixing_name,
            "num_peers": self.num_peers,
            "directed": self.directed,
            "varies": self.varies,
            "resample_every": self.resample_every,
            "round": server_round,
            "facts": asdict(self.facts(server_round)),
            "links": [list(link) for link in self.links(server_round)],
        }

    def snapshot(self, server_round: int) -> Snapshot:
        """Return the graph of a round with all that follows from it."""
        first = self._first_round(server_round)
        found = self._snapshots.get(first)
        if found is None:
            found = Snapshot(self._drawn(first), self.mixing_name)
            # training and isolation ask from threads of their own: each step here stands alone
            for old in list(self._snapshots)[: 1 - KEPT]:
                self._snapshots.pop(old, None)
            self._snapshots[first] = found
        return found

    def _first_round(self, server_round: int) -> int:
        """Return the first round with the same graph, as far as that is known beforehand."""
        if server_round < 1:
            raise ValueError(f"rounds count from 1, got {server_round}")
        if "server_round" in self._asks_for:
            return server_round
        if self.resample_every is None:
            return 1
        return server_round - (server_round - 1) % self.resample_every

    def _drawn(self, server_round: int) -> PeerGraph:
        given: dict[str, Any] = {}
        if "server_round" in self._asks_for:
            given["server_round"] = server_round
        if "rng" in self._asks_for:
            rounds = (server_round,) if self.varies else ()
            given["rng"] = numpy_stream(self.seed, "topology", *rounds)
        try:
            graph = self._made(given, PATIENCE if server_round > 1 else 1)
        except ConfigError:
            raise
        except (ValueError, nx.NetworkXException) as error:
            raise ConfigError(f"topology '{self.name}': {error}") from error
        try:
            graph = sound(graph, self.num_peers)
            if "server_round" not in self._asks_for:
                refuse_parts(graph)
        except ConfigError as error:
            raise ConfigError(f"topology '{self.name}': {error}") from error
        return graph

    def _made(self, given: Mapping[str, Any], chances: int) -> object:
        """Return what the factory makes, asked again so often while nothing is connected."""
        make = functools.partial(
            build, "topology", self.name, TOPOLOGIES, self.num_peers, options=self.options, **given
        )
        for _ in range(chances - 1):
            with contextlib.suppress(NotConnected):
                return make()
        return make()

    def _must_be_connected(self) -> None:
        """Refuse graphs of their own in each round that do not join all peers in N rounds."""
        if "server_round" not in self._asks_for:
            return
        together = self.graph(1).copy()
        for server_round in range(2, self.num_peers + 1):
            if is_connected(together):
                return
            together.add_edges_from(self.graph(server_round).edges)
        try:
            refuse_parts(together, f" in {self.num_peers} rounds")
        except ConfigError as error:
            raise ConfigError(f"topology '{self.name}': {error}") from error
