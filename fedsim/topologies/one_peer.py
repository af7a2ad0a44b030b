"""One-peer exponential graphs (Ying et al., 2021, https://arxiv.org/abs/2110.13363).

Everybody speaks to one peer in a round, 1 away in the first, then 2, 4, 8, ..., and from the start
again: as cheap as it can be. With N a power of two and weights of one half, log2(N) rounds average
exactly.
"""

import networkx as nx


def one_peer_exponential(num_peers: int, *, server_round: int) -> "nx.DiGraph[int]":
    """Everybody speaks to one peer in a round, twice as far away in the next.

    Args:
        num_peers: N.
        server_round: From 1.
    """
    period = (num_peers - 1).bit_length()  # log2(N), rounded up
    away = 2 ** ((server_round - 1) % period)
    graph: nx.DiGraph[int] = nx.DiGraph()
    graph.add_edges_from((peer, (peer + away) % num_peers) for peer in range(num_peers))
    return graph
