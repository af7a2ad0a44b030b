"""Two-dimensional lattices: peers in rows and columns, numbered row by row."""

import math
from typing import Annotated

import networkx as nx
from pydantic import Field

from fedsim.topologies.graph import PeerGraph

Side = Annotated[int, Field(ge=1)]


def torus(num_peers: int, *, rows: Side | None = None, columns: Side | None = None) -> PeerGraph:
    """Rows and columns, each closed to a ring: four neighbours each.

    Args:
        num_peers: N, rows times columns, neither less than 3.
        rows: Unset means as near to a square as N allows.
        columns: As `rows`.
    """
    return _lattice(*sides(num_peers, rows, columns, fewest=3), periodic=True)


def grid(num_peers: int, *, rows: Side | None = None, columns: Side | None = None) -> PeerGraph:
    """Rows and columns, open at the border: two to four neighbours each.

    Args:
        num_peers: N, rows times columns, neither less than 2.
        rows: Unset means as near to a square as N allows.
        columns: As `rows`.
    """
    return _lattice(*sides(num_peers, rows, columns, fewest=2), periodic=False)


def _lattice(rows: int, columns: int, *, periodic: bool) -> PeerGraph:
    lattice = nx.grid_2d_graph(rows, columns, periodic=periodic)
    graph = nx.convert_node_labels_to_integers(lattice, ordering="sorted")
    graph.graph["lattice"] = (rows, columns)
    return graph


def sides(num_peers: int, rows: int | None, columns: int | None, *, fewest: int) -> tuple[int, int]:
    """Return rows and columns of so many peers.

    Args:
        num_peers: N.
        rows: As the user wrote it; None for what fits.
        columns: As `rows`.
        fewest: Of rows, and of columns.

    Raises:
        ValueError: There are none.
    """
    if rows is None and columns is None:
        found = squarest(num_peers, fewest)
        if found is None:
            near = [str(n) for n in _usable(num_peers, fewest)]
            raise ValueError(
                f"{num_peers} peers cannot stand in rows and columns of at least {fewest}; take "
                f"{' or '.join(near)} of them"
            )
        return found
    down = rows if rows is not None else num_peers // (columns or 1)
    across = columns if columns is not None else num_peers // down
    if down * across != num_peers:
        if rows is not None and columns is not None:
            said = f"{rows} rows of {columns} are {down * across} peers, but there are {num_peers}"
        elif rows is not None:
            said = f"{num_peers} peers do not fill {rows} rows"
        else:
            said = f"{num_peers} peers do not fill rows of {columns}"
        raise ValueError(f"{said}; change topology.options, or partition.clients")
    if min(down, across) < fewest:
        raise ValueError(f"rows and columns must be at least {fewest}, got {down} rows of {across}")
    return down, across


def squarest(num_peers: int, fewest: int) -> tuple[int, int] | None:
    """Return the rows and columns nearest to a square, rows being fewer; None if there are none."""
    for rows in range(math.isqrt(num_peers), fewest - 1, -1):
        if num_peers % rows == 0:
            return rows, num_peers // rows
    return None


def _usable(num_peers: int, fewest: int) -> list[int]:
    """Return the nearest numbers of peers below and above that can stand in rows and columns."""
    below = [n for n in range(fewest**2, num_peers) if squarest(n, fewest)]
    above = num_peers + 1
    while squarest(above, fewest) is None:
        above += 1
    return [*below[-1:], above]
