"""What the adversary heard, and what attacks made of it."""

from typing import Literal

from attacks.observation import Kind
from fedsim.schemas.document import Count, Document, Seconds, Sha256


class ObservationRecord(Document):
    """`observations/ID.json`: what the adversary heard of one message; tensors lie beside it."""

    id: str
    """Also the stem of both files."""
    round: Count
    """Round of the message."""
    sender: str
    """Who sent it, as `client-3`; `all` for a mean over clients, unless one of them is attacked."""
    receiver: str
    """Whom it was meant for."""
    members: list[str] = []
    """Whose updates are in the mean; empty for a message of one client."""
    kind: Kind
    """What the tensors are."""
    num_examples: int | None
    """As the message announces it; null if it does not."""
    num_bytes: int | None = None
    """Size of the message, where nothing but that was heard."""
    masked: bool
    """Whether only some coordinates were heard (`visible/NAME` says which)."""
    weights: Sha256 | None
    """Digest of the weights in force, in `observations/models/`; null if they were not heard."""
    buffers: Sha256 | None
    """As `weights`, for running statistics."""
    buffers_after: bool = False
    """Whether running statistics that the client sent back were heard (`buffers-after/NAME`)."""
    isolated: Literal["heard", "exact", "estimated"] | None = None
    """Between peers, how the update was told from what was heard: it was a message itself; it
    follows from messages, whatever other peers computed; or it is a best guess. Null where clients
    send updates to a server."""
    expected_error: float | None = None
    """The error to expect of the update, root mean square over that of the update; null where
    clients send updates to a server."""
    expected_weights_error: float | None = None
    """As `expected_error`, of the weights in force; null also where no rule tells it."""
    told_after: Count | None = None
    """Between peers, the round after which the update could be told."""
    sha256: Sha256
    """Digest of the tensors."""


class SnapshotRecord(Document):
    """Where an attack stood; the tensor is `snapshot/NNN`."""

    step: Count
    """Steps taken."""
    matching_loss: float | None
    """What the attacker saw; null if it was not a number."""


class ReconstructionRecord(Document):
    """`reconstructions/OBSERVATION--ATTACK.json`: what an attack came to."""

    observation: str
    """What was attacked."""
    round: Count
    """Its round."""
    victim: str
    """Who sent it."""
    attack: str
    """Label of the attack in the experiment."""
    status: Literal["done", "unfinished", "failed"]
    """Unfinished: its time ran out, the best guess so far counts."""
    reason: str | None
    """Why it failed."""
    seconds: Seconds
    """Wall time."""
    matching_loss: float | None = None
    """What the attacker saw; the guess was chosen by it."""
    steps: Count = 0
    """Optimizer steps."""
    num_certified: Count | None = None
    """Guesses that the attack has proved; null if it proves nothing."""
    snapshots: list[SnapshotRecord] = []
    """How the guess came about, first to last."""
    notes: dict[str, str | float | None] = {}
    """What the attack wants to be known."""
    sha256: Sha256 | None = None
    """Digest of the tensors."""


class GuessSoFar(Document):
    """How far an attack is with one victim; the tensor has the observation's name."""

    step: Count
    """Steps taken."""
    images: Count
    """Guesses that are shown, the first of the batch."""


class ProgressRecord(Document):
    """`progress/WORKER.json`: what an attack worker is on; there only while it is."""

    attack: str
    """Label of the attack in the experiment."""
    observations: list[str]
    """What is attacked, one per victim."""
    started: str
    """When, ISO 8601 with time zone."""
    time_budget_s: Seconds
    """What the attack is allowed, per victim."""
    guesses: dict[str, GuessSoFar]
    """By observation; of those of which something is shown."""
