"""The contract with what Flower keeps private; a new Flower that moves it fails here."""

import pytest
from flwr.app import Error, Message, Metadata, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from fedsim.engines.flower_private import SERVER_NODE, assume_server_identity, empty_run


def test_no_instruction_can_be_written_by_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, None)

    # if this no longer raises, the identity is no longer needed: delete the module
    with pytest.raises(RuntimeError, match=r"TaskIdentity\.run_id is not set"):
        Message(RecordDict(), 5, "train")


def test_the_server_of_a_run_writes_instructions_and_nodes_reply_to_them() -> None:
    assume_server_identity(7)

    message = Message(RecordDict(), 5, "train", group_id="1")
    reply = Message(RecordDict(), reply_to=message)
    failure = Message(Error(2, "boom"), reply_to=message)

    assert (message.metadata.run_id, message.metadata.src_node_id) == (7, SERVER_NODE)
    assert (message.metadata.dst_node_id, message.metadata.message_type) == (5, "train")
    for one in (reply, failure):
        assert (one.metadata.src_node_id, one.metadata.dst_node_id) == (5, SERVER_NODE)
    assert (failure.has_error(), failure.error.reason) == (True, "boom")


def test_a_message_is_put_together_again_from_its_content_and_metadata() -> None:
    assume_server_identity(7)
    message = Message(RecordDict(), 5, "train")
    metadata: Metadata = message.metadata

    again = Message(message.content, metadata=metadata)  # type: ignore[call-overload]

    assert again.metadata == metadata
    assert Message(RecordDict(), reply_to=again).metadata.src_node_id == 5


def test_an_empty_run_is_nothing_but_its_id() -> None:
    assert empty_run(7).run_id == 7
