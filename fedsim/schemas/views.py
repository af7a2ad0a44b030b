"""What the adversary heard between peers, raw."""

from fedsim.protocols.peer_protocol import MessageKind
from fedsim.schemas.document import Count, Document, Sha256


class HeardMessage(Document):
    """One message between two peers."""

    sender: Count
    """Peer that said it."""
    receiver: Count
    """Peer that it was said to."""
    round: Count
    """When it was said; before the round of the view, if it came late."""
    hop: Count
    """When it was said."""
    num_bytes: Count
    """Size of its arrays on the wire."""
    kind: MessageKind | None
    """What it holds; null where the link hides it, or where it is no sound message."""
    chunk: Count | None
    """Which chunk of the coordinates, from 0; null for all of them."""
    num_chunks: Count
    """Into how many chunks the coordinates are cut, as `torch.tensor_split` does."""
    members: list[Count]
    """Whose gradients are summed in it, in the order of the sum; empty if it is no sum."""
    parcel: str | None
    """Its tensors are `PARCEL/NAME`; messages that say the same share them. Null with `kind`."""


class ViewRecord(Document):
    """`views/round-RRRRR-hop-HH-EAR.json`: what one ear heard in one hop; tensors lie beside it.

    In a round that a collective began again, `lost-L-` stands before the ear.
    """

    round: Count
    """From 1."""
    hop: Count
    """From 0."""
    ear: str
    """Where it was heard: `peer-3` at a peer of the adversary's own, `tap` on links, `relay`."""
    lost: Count
    """Members of a collective that were missing by then."""
    messages: list[HeardMessage]
    """In the order of sender, then as they were said."""
    own: list[str]
    """What a peer of the adversary's own knows of itself, as tensors `own/NAME`: the `update` that
    it computed in this hop, as a vector, and the `weights` at which it did."""
    silent: list[Count]
    """Peers that did not answer the relay; always empty for other ears."""
    sha256: Sha256
    """Digest of the tensors."""
