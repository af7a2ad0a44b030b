"""The one place that touches what Flower keeps private.

Constructing an instruction `Message` needs an identity that Flower's own runtime sets for the
process; an engine of our own sets it here. `tests/fedsim/engines/test_flower_private.py` is the
contract test: it fails when a new Flower moves these.
"""

from typing import Any

from flwr.app import Metadata
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

SERVER_NODE = 1
"""The node id of the server, as Flower's own SuperLink has it."""


def assume_server_identity(run_id: int) -> None:
    """Let this process construct instruction messages, as the server of run `run_id`."""
    TaskIdentity.run_id = run_id
    TaskIdentity.node_id = SERVER_NODE
    TaskIdentity.task_id = 0


def empty_run(run_id: int) -> Run:
    """Return a `Run` that says nothing but its id."""
    return Run.create_empty(run_id)


def plain_metadata(metadata: Metadata) -> dict[str, Any]:
    """Return what a message says of itself, as plain values."""
    return dict(vars(metadata))


def metadata_from(plain: dict[str, Any]) -> Metadata:
    """Return what `plain_metadata` was given."""
    metadata = Metadata.__new__(Metadata)
    vars(metadata).update(plain)
    return metadata


__all__ = [
    "SERVER_NODE",
    "Run",
    "assume_server_identity",
    "empty_run",
    "metadata_from",
    "plain_metadata",
]
