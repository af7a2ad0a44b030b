"""Graphs of peers and the weights they average with, by the names that experiments use."""

TOPOLOGIES: dict[str, str] = {
    "ring": "fedsim.topologies.fixed_graphs:ring",
    "line": "fedsim.topologies.fixed_graphs:line",
    "star": "fedsim.topologies.fixed_graphs:star",
    "complete": "fedsim.topologies.fixed_graphs:complete",
    "torus": "fedsim.topologies.lattices:torus",
    "grid": "fedsim.topologies.lattices:grid",
    "hypercube": "fedsim.topologies.fixed_graphs:hypercube",
    "tree": "fedsim.topologies.fixed_graphs:tree",
    "watts-strogatz": "fedsim.topologies.random_graphs:watts_strogatz",
    "erdos-renyi": "fedsim.topologies.random_graphs:erdos_renyi",
    "random-regular": "fedsim.topologies.random_graphs:random_regular",
    "one-peer-exponential": "fedsim.topologies.one_peer:one_peer_exponential",
    "edges": "fedsim.topologies.edge_file:edges",
}
"""`package.module:Name` by name; what is behind a name returns the graph of N peers.

It is called as `factory(num_peers, **options)`, and is given besides what it asks for by name:
`rng`, a numpy generator, if the graph is drawn at random; `server_round`, from 1, if every round
has a graph of its own.
"""

MIXINGS: dict[str, str] = {
    "metropolis": "fedsim.topologies.mixing:metropolis",
    "uniform": "fedsim.topologies.mixing:uniform",
    "max-degree": "fedsim.topologies.mixing:max_degree",
}
"""`package.module:Name` by name; what is behind a name returns the weight of every link."""
