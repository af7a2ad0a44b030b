"""The federation as a picture: who speaks to whom, where the adversary sits, what it hears."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import networkx as nx
import numpy as np

from fedsim.files import Record
from fedsim.reach import Reach
from fedsim.schemas.adversary import Threat
from fedsim.schemas.topology import TopologyRecord
from fedsim.topologies.layout import positions
from fedsim.watch.values import listed, table, whole

MOST_NODES = 1_000
"""Clients that are drawn; of more, the first."""
MOST_LINKS = 8_000
"""Links that are drawn; those that are heard before the others."""
ONE_RING = 120
"""Clients that stand in one circle around a server."""
SERVER = -1
"""The number of the server, as a node."""

Link = tuple[int, int]
Scope = tuple[frozenset[int] | None, frozenset[int] | None]
"""Rounds in which the adversary listens, and whom it is after; None for all."""


def scope_of(config: Mapping[str, Any]) -> Scope:
    """Return the scope of the adversary of an experiment, given as `config.toml` has it."""
    adversary = table(config.get("adversary"))
    found = []
    for key in ("rounds", "victims"):
        value = adversary.get(key, "all")
        numbers = (whole(one) for one in listed(value))
        found.append(
            None if value == "all" else frozenset(one for one in numbers if one is not None)
        )
    return found[0], found[1]


def star(num_clients: int, threat: Record | None, scope: Scope) -> Record:
    """Return the picture of a run with a server; see `among_peers` for its keys."""
    shown = min(max(1, num_clients), MOST_NODES)
    wanted = [one for one in range(shown) if scope[1] is None or one in scope[1]]
    told = threat or {}
    deaf = scope[0] == frozenset() or threat is None
    sits = told.get("position") == "server"
    alone = not told.get("hears_sum")
    heard = [] if deaf or not alone else wanted
    return {
        "name": "star",
        "nodes": [_short(place) for place in _rings(shown)],
        "left_out": num_clients - shown,
        "server": True,
        "links": [(SERVER, one) for one in range(shown) if one not in set(heard)],
        "heard": [(SERVER, one) for one in heard],
        "own": [SERVER] if sits else [],
        "taps": not sits and not deaf,
        "directed": False,
        "note": _star_note(deaf, sits, alone, len(heard), num_clients),
    }


def among_peers(
    topology: Record, threat: Record, newest: Sequence[Record], scope: Scope, first: bool
) -> Record | None:
    """Return the picture of a run without a server; None if its records make no sense.

    Keys: `nodes` (across and downwards from -1 to 1, by number), `links` and `heard` (pairs of
    numbers), `own` (the adversary's nodes), `taps` (whether it sits on links), `left_out` (clients
    that are not drawn), `server` (whether there is one, at 0, 0), `directed`, `name`, `note`.

    Args:
        topology: What `topology.json` holds.
        threat: What `threat.json` holds.
        newest: The newest round, if there is one: its links, where they change.
        scope: Of the adversary.
        first: Whether nodes must be placed; else `nodes` is left out, for they stay.
    """
    try:
        TopologyRecord.model_validate(topology)
        Threat.model_validate(threat)
        if int(topology["num_peers"]) > MOST_NODES:
            return None
        reach = Reach(
            topology=topology, threat=threat, rounds=newest, listens=scope[0], wanted=scope[1]
        )
        number = int(newest[0]["round"]) if newest else 1
        graph = reach.graph(number)
        heard = {frozenset(link) for link in reach.heard(number)}
        every = [(int(one), int(other)) for one, other in graph.edges]
        links = [link for link in every if frozenset(link) not in heard]
        known = [link for link in every if frozenset(link) in heard][:MOST_LINKS]
        drawn: Record = {
            "name": str(topology["name"]),
            "left_out": 0,
            "server": False,
            "links": links[: MOST_LINKS - len(known)],
            "heard": known,
            "own": [peer for peer in reach.own if peer in graph],
            "taps": not reach.own and not reach.deaf,
            "directed": bool(topology["directed"]),
            "note": _peers_note(reach, len(heard), len(every), number),
        }
        if first:
            drawn["nodes"] = _fitted(positions(str(topology["name"]), graph), len(graph))
    except (ValueError, TypeError, LookupError, AttributeError, nx.NetworkXException):
        return None
    return drawn


def _star_note(deaf: bool, sits: bool, alone: bool, heard: int, num_clients: int) -> str:
    if deaf:
        return "Nobody listens."
    if not alone:
        return "The server of this run hears the mean of all updates, and no client alone."
    where = "The adversary is the server" if sits else "The adversary sits on the wire"
    whom = "every client" if heard == num_clients else f"{heard} of {num_clients} clients"
    return f"{where}, and hears {whom}."


def _peers_note(reach: Reach, heard: int, links: int, number: int) -> str:
    if reach.deaf:
        return "The adversary listens in no round."
    part = f"{heard} of {links} links"
    if reach.own:
        who = ", ".join(map(str, reach.own))
        said = f"The adversary is peer {who}" if len(reach.own) == 1 else f"It is peers {who}"
        said = f"{said}, and hears {part}."
    elif reach.hears_all:
        said = f"The adversary hears every one of {links} links."
    else:
        said = f"The adversary taps {part}."
    return f"{said} Links of round {number}." if reach.topology["varies"] else said


def _rings(num: int) -> list[tuple[float, float]]:
    """Return places around a server: a circle, or several when they are many."""
    rings = 1 if num <= ONE_RING else min(12, math.ceil(num / 100) + 1)
    sizes = [0.35 + 0.65 * (place + 1) / rings if rings > 1 else 1.0 for place in range(rings)]
    shares = np.array(sizes) / sum(sizes)
    ends = [round(float(end)) for end in num * np.cumsum(shares)]
    places: list[tuple[float, float]] = []
    for size, start, end in zip(sizes, [0, *ends[:-1]], ends, strict=True):
        for place in range(end - start):
            angle = (
                2 * math.pi * (place + 0.5 * (rings > 1 and sizes.index(size) % 2)) / (end - start)
            )
            places.append((size * math.sin(angle), -size * math.cos(angle)))
    return places


def _fitted(places: Mapping[int, tuple[float, float]], num: int) -> list[tuple[float, float]]:
    """Return places from -1 to 1, downwards, in order of number."""
    found = np.array([places[peer] for peer in range(num)], dtype=float) * (1, -1)
    low, high = found.min(axis=0), found.max(axis=0)
    half = max(1e-9, float((high - low).max()) / 2)
    return [_short(place) for place in (found - (low + high) / 2) / half]


def _short(place: Sequence[float]) -> tuple[float, float]:
    return round(float(place[0]), 3), round(float(place[1]), 3)
