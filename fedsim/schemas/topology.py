"""Who may speak to whom, in an experiment without a server."""

from typing import Annotated, Any

from pydantic import Field

from fedsim.schemas.document import Count, Document, Share

Peers = Annotated[int, Field(ge=2)]
RoundNumber = Annotated[int, Field(ge=1)]


class TopologyFacts(Document):
    """What can be said of the graph of one round, and of its mixing matrix."""

    num_peers: Peers
    """Peers."""
    num_links: Count
    """Pairs of peers that speak; of a directed graph, pairs of sender and receiver."""
    directed: bool
    """Whether somebody may speak to a peer that does not speak to it."""
    connected: bool
    """Whether everybody is reached from everybody, in the graph of this round alone."""
    bipartite: bool
    """Whether peers fall into two halves without links inside; directions aside."""
    min_degree: Count
    """Fewest peers that one hears."""
    mean_degree: Annotated[float, Field(ge=0)]
    """Mean of the peers that one hears."""
    max_degree: Count
    """Most peers that one hears."""
    diameter: int | None
    """Links between the two peers that are farthest apart; null if not connected."""
    second_eigenvalue: Share
    """Second largest modulus of an eigenvalue of the mixing matrix."""
    spectral_gap: Share
    """1 minus that: what a round of averaging takes off disagreement, in the long run."""
    doubly_stochastic: bool
    """Whether columns of the mixing matrix sum to 1 as its rows do."""


class TopologyRecord(Document):
    """`topology.json`: the graph of peers; there only in experiments without a server."""

    name: str
    """As the experiment names it."""
    options: dict[str, Any]
    """Settings of the graph."""
    mixing: str
    """Rule of the weights with which peers average."""
    num_peers: Peers
    """Peers."""
    directed: bool
    """Whether somebody may speak to a peer that does not speak to it."""
    varies: bool
    """Whether the graph changes from round to round."""
    resample_every: RoundNumber | None
    """Rounds after which the graph is drawn anew; null if never."""
    round: RoundNumber
    """The round that facts and links are of; the others have the same unless the graph varies."""
    facts: TopologyFacts
    """Of this round."""
    links: list[tuple[int, int]]
    """Each link once: the lower number first; of a directed graph, sender and receiver."""
