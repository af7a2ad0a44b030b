"""What came out of a run without a server."""

from fedsim.schemas.document import Count, Document, Modality, Share
from fedsim.schemas.statistics import Spread


class Isolation(Document):
    """Updates that the adversary got hold of in one way."""

    how: str
    """heard: as it was sent; exact: told apart, whatever the other peers computed; estimated: the
    best guess that what was heard allows."""
    updates: Count
    """Updates."""
    expected_error: Spread | None
    """What the adversary expects: root mean square error over root mean square of the update."""
    update_error: Spread | None
    """What it was, in the same unit; known to scoring alone."""
    weights_error: Spread | None
    """Relative error of the weights at which attacks took the update to be computed."""
    mistaken: Count
    """Updates that the adversary took for certain and that were wrong by far more than it expected:
    a fault that it could not see changed what was mixed."""


class DistanceLeakage(Document):
    """What one attack got from the peers at one distance from the adversary."""

    attack: str
    """Label of the attack."""
    distance: Count | None
    """Links between a peer and the adversary, in the round of the update; 0 where the adversary
    hears the peer at the source without being its neighbour; null if out of reach."""
    peers: Count
    """Peers that were at this distance in some round."""
    updates: Count
    """What there was to get: updates of these peers, in rounds in which the adversary listened."""
    isolated: dict[str, Count]
    """Updates that it got hold of, by `how`."""
    attacked: Count
    """Of these, updates that were attacked and scored."""
    num_images: Count
    """Private images behind them."""
    num_recovered: Count
    """Of these, images at or above the threshold."""
    psnr_db: Spread | None
    """Over guessed images; null if there is none."""
    baseline_psnr_db: float | None
    """Median for the data mean."""
    modality: Modality = "image"
    """What private examples are; of texts and rows, what is said of images holds."""
    accuracy: Spread | None = None
    """Of guessed texts and rows, in place of `psnr_db`."""
    baseline_accuracy: Share | None = None
    """Of texts and rows, in place of `baseline_psnr_db`."""


class PeersSummary(Document):
    """What is told of a run without a server alone."""

    topology: str
    """Who spoke to whom."""
    protocol: str
    """How they trained."""
    consensus_distance: float | None
    """At the last evaluation: root mean square distance of peers' weights to their mean."""
    peer_accuracy: Spread | None
    """Over peers, at the last evaluation."""
    messages: Count
    """Between peers, in all rounds; each receiver counted."""
    bytes_between: Count
    """Array bytes of those messages."""
    hears: Share
    """Share of the links that the adversary hears, in the first round in which it listens."""
    isolation: list[Isolation]
    """A row per way; empty if it got hold of no update."""
    by_distance: list[DistanceLeakage]
    """A row per attack on images and distance, nearest first."""
