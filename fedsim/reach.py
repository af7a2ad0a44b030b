"""Where the adversary of a run without a server sat, what it heard, and how far all are from it.

All of it is read from the records of a run, so that pages of old runs run no code of anybody's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, cast

import networkx as nx

from fedsim.files import Record, read_json, reading
from fedsim.records import RunDirectory
from fedsim.topologies.graph import PeerGraph
from fedsim.topologies.lattices import sides

FEWEST = {"torus": 3, "grid": 2}
"""Topologies that stand in rows and columns, and the fewest of each."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """The graph of a run, and the adversary in it.

    Attributes:
        topology: What `topology.json` holds.
        threat: What `threat.json` holds.
        rounds: Records of rounds.
        listens: Rounds in which it listens; None for all.
        wanted: Peers whose updates it is after; None for all but its own.
    """

    topology: Record
    threat: Record
    rounds: Sequence[Record] = ()
    listens: frozenset[int] | None = None
    wanted: frozenset[int] | None = None
    _distances: dict[int, dict[int, int]] = field(default_factory=dict, repr=False)

    @property
    def num_peers(self) -> int:
        """N."""
        return int(self.topology["num_peers"])

    @property
    def own(self) -> list[int]:
        """Peers that are the adversary's."""
        return list(self.threat.get("peers", []))

    @property
    def hears_all(self) -> bool:
        """Whether it hears every link."""
        return self.threat.get("links") == "all"

    @property
    def deaf(self) -> bool:
        """Whether it listens in no round, as where utility alone is measured."""
        return self.listens == frozenset()

    @cached_property
    def ears(self) -> frozenset[int]:
        """Peers from which distances count: its own; else those that it hears at the source."""
        if self.own:
            return frozenset(self.own)
        if self.hears_all:
            return frozenset(range(self.num_peers))
        return frozenset(sender for sender, _ in self.threat.get("links", []))

    @property
    def victims(self) -> list[int]:
        """Peers whose updates it is after."""
        return [
            peer
            for peer in range(self.num_peers)
            if peer not in self.own and (self.wanted is None or peer in self.wanted)
        ]

    def listened(self) -> list[Record]:
        """Return the rounds in which it listened and somebody trained."""
        return [
            record
            for record in self.rounds
            if record.get("clients") and (self.listens is None or record["round"] in self.listens)
        ]

    def links(self, server_round: int) -> list[tuple[int, int]]:
        """Return the links of a round, each once."""
        found = self.topology["links"]
        if self.topology["varies"]:
            records = [one for one in self.rounds if one["round"] == server_round]
            found = next((one["links"] for one in records if one.get("links")), found)
        return [(int(one), int(other)) for one, other in found]

    def graph(self, server_round: int) -> PeerGraph:
        """Return the graph of a round; `graph["lattice"]` are its rows and columns, if it has."""
        graph: PeerGraph = nx.DiGraph() if self.topology["directed"] else nx.Graph()
        graph.add_nodes_from(range(self.num_peers))
        graph.add_edges_from(self.links(server_round))
        name = self.topology["name"]
        if name in FEWEST:
            options = self.topology["options"]
            rows, columns = options.get("rows"), options.get("columns")
            graph.graph["lattice"] = sides(self.num_peers, rows, columns, fewest=FEWEST[name])
        return graph

    def heard(self, server_round: int) -> list[tuple[int, int]]:
        """Return the links of a round that it hears, in any direction."""
        if self.deaf:
            return []
        tapped = {frozenset(link) for link in self.threat.get("links", [])} if not self.own else ()
        return [
            link
            for link in self.links(server_round)
            if self.hears_all or self.ears_on(link) or frozenset(link) in tapped
        ]

    def ears_on(self, link: tuple[int, int]) -> bool:
        """Whether a peer of its own is at an end of a link."""
        return any(peer in self.own for peer in link)

    def distances(self, server_round: int) -> dict[int, int]:
        """Return how many links a peer's messages are from the adversary, for all within reach.

        A neighbour of its own peers is at 1; a peer that a tap hears at the source, and everybody
        before a relay, is at 0.
        """
        key = server_round if self.topology["varies"] else 0
        if key not in self._distances:
            graph: Any = self.graph(server_round)
            towards = nx.reverse_view(graph) if graph.is_directed() else graph
            found = nx.multi_source_dijkstra_path_length(
                towards, sorted(self.ears), weight=lambda *_: 1
            )
            self._distances[key] = cast(dict[int, int], dict(found))
        return self._distances[key]


def reach_of(run: RunDirectory) -> Reach | None:
    """Return where the adversary of a run sat; None if the run has a server, or too few records."""
    threat = run.root / "threat.json"
    if not run.topology.is_file() or not threat.is_file():
        return None
    listens, wanted = _scope(run)
    return Reach(
        topology=read_json(run.topology),
        threat=read_json(threat),
        rounds=run.rounds(),
        listens=listens,
        wanted=wanted,
    )


def updates_wanted(run: RunDirectory) -> list[tuple[int, int]]:
    """Return (round, client) of every update that the adversary of a run was after.

    These are the updates of its victims in rounds in which it listened, whether it got hold of them
    or not; in a run without a server, never those of its own peers.
    """
    reach = reach_of(run)
    if reach is not None:
        return [
            (record["round"], peer)
            for record in reach.listened()
            for peer in reach.victims
            if peer in record["clients"]
        ]
    listens, wanted = _scope(run)
    return [
        (record["round"], client)
        for record in run.rounds()
        for client in record.get("clients", [])
        if (listens is None or record["round"] in listens) and (wanted is None or client in wanted)
    ]


def _scope(run: RunDirectory) -> tuple[frozenset[int] | None, frozenset[int] | None]:
    """Return the rounds in which the adversary listens and whom it is after; None for all."""
    with reading(run.config):
        scope = run.read_config().get("adversary", {})
        listens, wanted = scope.get("rounds", "all"), scope.get("victims", "all")
        return (
            None if listens == "all" else frozenset(listens),
            None if wanted == "all" else frozenset(wanted),
        )


def number_of(client: str) -> int:
    """Return the number of a client or peer, as records name it: "client-3"."""
    return int(client.rpartition("-")[2])
