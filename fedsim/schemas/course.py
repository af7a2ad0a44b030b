"""The course of a run: where it ran, its rounds, its events, what clients noticed."""

from typing import Literal

from pydantic import ConfigDict

from fedsim.schemas.document import Count, Document, Seconds, Share


class Environment(Document):
    """`environment.json`: versions and hardware; no names of people, machines or folders."""

    format: int
    """Version of the run directory."""
    fedsim: str
    """Version of fedsim."""
    python: str
    """Version of Python."""
    packages: dict[str, str | None]
    """Versions of the packages that results may depend on; null if one is not installed."""
    platform: str
    """Operating system and processor family."""
    cpu_count: int | None
    """Processors."""
    gpu: str | None
    """Name of the first GPU."""
    started: str
    """When the run was started, ISO 8601 with time zone."""


class Alarm(Document):
    """What a check of a client noticed about the weights that it received."""

    check: str
    """Name of the check."""
    message: str
    """For people."""
    value: float | None
    """What was measured; null if it was not a finite number."""
    threshold: float
    """The value from which, or below which, the check raises an alarm."""


class Alarms(Document):
    """`alarms/round-RRRRR-CLIENT.json`: what a client noticed; there only if it did."""

    alarms: list[Alarm]
    """In the order of the checks."""


class RoundAlarm(Alarm):
    """An alarm, and who raised it."""

    client: int
    """Number of the client."""


class Round(Document):
    """A line of `rounds.jsonl`; of several lines for one round the last one counts."""

    round: Count
    """From 1; 0 is the model before training."""
    accuracy: Share | None = None
    """On the test split; null in rounds that are not evaluated."""
    loss: float | None = None
    """Mean cross entropy on the test split."""
    train_loss: float | None = None
    """Mean of what clients reported, weighted by examples."""
    client_accuracy: Share | None = None
    """Mean of what clients measured on their own data, if asked."""
    client_loss: float | None = None
    """As `client_accuracy`."""
    clients: list[int] = []
    """Clients whose updates were used."""
    replies: Count = 0
    """Messages that came back."""
    rejected: Count = 0
    """Replies that were refused; `events.jsonl` says why."""
    tampered: list[int] = []
    """Clients that were sent weights other than those in force; they are not aggregated."""
    alarms: list[RoundAlarm] = []
    """What clients noticed about the weights that they received, if they check them."""
    secure_aggregation: dict[str, list[int]] = {}
    """Clients that answered, by stage of secure aggregation: keys, shares, masked, unmask."""
    epsilon: float | None = None
    """Differential privacy that is given away once this round is over, the most of any client, with
    `delta`; null without accounting, or where no epsilon is finite."""
    delta: float | None = None
    """The probability with which epsilon may be exceeded; null without accounting."""
    privacy_unit: Literal["example", "client"] | None = None
    """Whose presence is hidden: one example's, or all of a client's."""
    failed: list[int] = []
    """Peers that did not answer, and sat out the rest of the round; in runs without a server, as
    are the next four."""
    messages: Count = 0
    """Messages between peers, each receiver counted."""
    bytes_between: Count = 0
    """Array bytes of those messages."""
    consensus_distance: float | None = None
    """Root mean square, over peers, of the distance of a peer's weights to the mean of all; 0 when
    all agree. `accuracy` and `loss` are those of the mean."""
    peer_accuracy: list[Share | None] = []
    """On the test split, of each peer's own model; null for one that did not tell it."""
    links: list[tuple[int, int]] = []
    """Who could talk to whom, where that changes from round to round."""
    bytes_up: Count = 0
    """Array bytes from clients, as sent: packed without loss where a defense changed the update,
    four bytes a value where none did."""
    bytes_down: Count = 0
    """Array bytes to clients."""
    seconds: Seconds = 0.0
    """Wall time of the round."""


class Event(Document):
    """A line of `events.jsonl`: a fault, a refused message, a crashed attack, a resume."""

    model_config = ConfigDict(extra="allow")

    time: str
    """ISO 8601 with time zone."""
    kind: str
    """A short name."""
    message: str
    """For people."""
