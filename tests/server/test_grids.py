"""Grids around a Grid."""

from collections.abc import Callable, Sequence

import pytest
from flwr.app import Error, Message, RecordDict

from fedsim.engines.flower_private import SERVER_NODE, empty_run
from fedsim.engines.local import FIRST_NODE, LocalGrid
from fedsim.wire import REPEATED, ticket_of
from fedsim.wrapped_grid import WrappedGrid
from server.grids import Cohort, Matched


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


Arrive = Callable[[list[Message], list[Message]], list[Message]]
"""(replies to these requests, all replies before) -> what arrives."""


class Arriving(LocalGrid):
    """Nodes whose replies arrive as `arrive` says."""

    def __init__(self, num_nodes: int, arrive: Arrive) -> None:
        super().__init__(num_nodes)
        self.arrive = arrive
        self.earlier: list[Message] = []

    def deliver(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        replies = [Message(RecordDict(), reply_to=message) for message in messages]
        arrived = self.arrive(replies, list(self.earlier))
        self.earlier += replies
        return arrived


def asked_twice(arrive: Arrive) -> tuple[list[Message], list[tuple[str, int]]]:
    """Ask two nodes twice; return the second time's replies, and what was left out."""
    strays: list[tuple[str, int]] = []
    grid = Matched(Arriving(2, arrive), lambda kind, _, node: strays.append((kind, node)))
    for _ in range(2):
        requests = [Message(RecordDict(), node, "query") for node in grid.get_node_ids()]
        replies = list(grid.send_and_receive(requests))
    return replies, strays


def from_another_node(replies: list[Message], earlier: list[Message]) -> list[Message]:
    if earlier:
        replies[1].metadata.__dict__["_src_node_id"] = FIRST_NODE
    return replies


def from_nobody(replies: list[Message], earlier: list[Message]) -> list[Message]:
    if earlier:
        replies[1].metadata.group_id = "of another server.1"
    return replies


@pytest.mark.parametrize(
    ("arrive", "strays", "nodes"),
    [
        (lambda new, old: new, [], [0, 1]),
        (lambda new, old: new[:1], [], [0]),
        (lambda new, old: [*new, new[0]], [("repeated-reply", FIRST_NODE)] * 2, [0, 1]),
        (lambda new, old: old[:1] + new, [("late-reply", FIRST_NODE)], [0, 1]),
        (lambda new, old: old[1:] + new[:1], [("late-reply", FIRST_NODE + 1)], [0]),
        (from_another_node, [("stray-reply", FIRST_NODE)], [0]),
        (from_nobody, [("stray-reply", FIRST_NODE + 1)], [0]),
    ],
    ids=["all", "lost", "twice", "late", "late and lost", "another node", "nobody"],
)
def test_one_reply_to_each_request_counts_and_every_other_is_told_of(
    arrive: Arrive, strays: list[tuple[str, int]], nodes: list[int]
) -> None:
    replies, found = asked_twice(arrive)

    assert found == strays
    assert [reply.metadata.src_node_id - FIRST_NODE for reply in replies] == nodes


def test_what_the_network_says_of_a_node_becomes_an_error_of_that_node() -> None:
    def gone(replies: list[Message], _: list[Message]) -> list[Message]:
        error = Message(Error(5, "node unavailable"), reply_to=replies[1])
        error.metadata.__dict__["_src_node_id"] = SERVER_NODE
        return [replies[0], error]

    replies, strays = asked_twice(gone)

    assert strays == []
    assert [reply.has_error() for reply in replies] == [False, True]
    assert replies[1].metadata.src_node_id == FIRST_NODE + 1
    assert replies[1].error.reason == "node unavailable"


def test_a_client_that_says_it_was_asked_twice_is_waited_for() -> None:
    def again(replies: list[Message], _: list[Message]) -> list[Message]:
        first = Message(Error(REPEATED, "a request came once more"), reply_to=replies[1])
        first.metadata.__dict__["_src_node_id"] = FIRST_NODE + 1
        return [replies[0], first, replies[1]]

    replies, strays = asked_twice(again)

    assert strays == [("repeated-request", FIRST_NODE + 1)] * 2
    assert not any(reply.has_error() for reply in replies)


@pytest.mark.parametrize("group", ["", "1", ".1", "a.", "a.b", "a.-1", "a.٣", "a." + 19 * "9"])
def test_what_is_no_ticket_is_none(group: str) -> None:
    assert ticket_of(group) is None
