"""What a tap on real links writes beside observations."""

from typing import Literal

from pydantic import Field

from fedsim.schemas.document import Count, Document, Seconds


class TrafficBurst(Document):
    """A line of `traffic.jsonl`: bytes that crossed a connection one way, without a pause."""

    time: str
    """When the first of them crossed, ISO 8601 with time zone."""
    seconds: Seconds
    """Until the last of them."""
    connection: Count
    """Number of the connection, in the order in which they were made."""
    link: str
    """Whose: `client-N` where each client has a way of its own, else the address of who calls."""
    direction: Literal["up", "down"]
    """up: from a node to the SuperLink; down: back."""
    bytes: int = Field(ge=1)
    """How many, of TCP: with TLS, if there is any."""
    encrypted: bool
    """Whether it was TLS: then there is nothing more to be had of them."""


class HeardUpTo(Document):
    """`heard.json`: how far a tap on real links has come."""

    round: Count
    """The round up to which everything was heard; 0 before the first."""
    encrypted: bool = False
    """Whether all that crossed so far was encrypted: then no round will be heard."""
