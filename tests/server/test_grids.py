"""Grids around a Grid."""

from collections.abc import Sequence

from flwr.app import Message, RecordDict

from fedsim.engines.flower_private import empty_run
from fedsim.engines.local import FIRST_NODE, LocalGrid
from server.grids import Cohort, WrappedGrid


class Echo(LocalGrid):
    """Nodes that answer with an empty content."""

    def deliver(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        return [Message(RecordDict(), reply_to=message) for message in messages]


def test_a_wrapped_grid_hands_everything_on() -> None:
    inner = Echo(2)
    grid = WrappedGrid(inner)
    grid.set_run(empty_run(7))

    message = grid.create_message(RecordDict(), "query", FIRST_NODE, "1")
    [reply] = grid.send_and_receive([message])
    ids = list(grid.push_messages([message]))
    [pulled] = grid.pull_messages(ids)

    assert list(grid.get_node_ids()) == [FIRST_NODE, FIRST_NODE + 1]
    assert reply.metadata.src_node_id == pulled.metadata.src_node_id == FIRST_NODE
    assert list(grid.pull_messages(ids)) == []  # a reply is handed over once
    assert inner.run.run_id == 7
    assert grid.run is inner.run


def test_a_cohort_shows_the_drawn_nodes_alone() -> None:
    cohort = Cohort(Echo(5), [FIRST_NODE + 3, FIRST_NODE + 1])

    assert list(cohort.get_node_ids()) == [FIRST_NODE + 3, FIRST_NODE + 1]
