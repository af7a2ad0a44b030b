"""Protocols by which peers train together, by the name that experiments use."""

SERVER = "server"
"""Not a protocol between peers: clients and a parameter server, as `server.strategy` says."""

PROTOCOLS: dict[str, str] = {
    "gradient-sharing": "fedsim.protocols.gradient_sharing:GradientSharing",
    "d-psgd": "fedsim.protocols.d_psgd:DecentralisedPSGD",
    "gradient-tracking": "fedsim.protocols.gradient_tracking:GradientTracking",
    "push-sum": "fedsim.protocols.push_sum:PushSum",
    "gossip": "fedsim.protocols.gossip:Gossip",
    "choco": "fedsim.protocols.choco:Choco",
    "ring-all-reduce": "fedsim.protocols.ring_all_reduce:RingAllReduce",
    "tree-all-reduce": "fedsim.protocols.tree_all_reduce:TreeAllReduce",
}
"""`package.module:Name` by name."""
