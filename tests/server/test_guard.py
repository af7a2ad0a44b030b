"""The doorman: what reaches a strategy, in which order, and in which language."""

import math
from collections.abc import Iterable, Mapping

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg, Strategy
from torch import Tensor

from attacks.observation import Tensors
from fedsim.engines.local import FIRST_NODE, LocalGrid
from fedsim.errors import RunFailed
from fedsim.wire import ARRAYS, BUFFERS, METRICS, UpdateKind, to_record, to_tensors
from server.guard import Exchange, Guarded
from server.strategies import FedSGD

WEIGHTS = {"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "b": torch.tensor([0.5, -0.5])}
ALL = {"fraction_evaluate": 1.0, "min_train_nodes": 1, "min_evaluate_nodes": 1} | {
    "min_available_nodes": 1
}

Content = RecordDict | Error


class Nodes(LocalGrid):
    """Nodes that answer whatever they are told to."""

    def __init__(self, contents: Mapping[int, Content]) -> None:
        super().__init__(len(contents))
        self.contents = contents

    def deliver(self, messages: Iterable[Message], timeout: float | None) -> list[Message]:
        return [self._reply(message) for message in messages]

    def _reply(self, message: Message) -> Message:
        content = self.contents[message.metadata.dst_node_id - FIRST_NODE]
        return Message(content, reply_to=message)


class Spy(FedAvg):
    """FedAvg, and what it was shown."""

    def __init__(self) -> None:
        super().__init__(**ALL)  # type: ignore[arg-type]
        self.shown: list[RecordDict] = []

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        replies = list(replies)
        self.shown += [reply.content for reply in replies]
        return super().aggregate_train(server_round, replies)


Events = list[tuple[str, str, int]]


def guarded(
    inner: Strategy,
    events: Events | None = None,
    *,
    kind: UpdateKind = "gradient",
    buffers: Tensors | None = None,
    clients: int = 3,
) -> Guarded:
    exchange = Exchange(
        kind=kind,
        parameters=WEIGHTS,
        buffers=buffers or {},
        learning_rate=0.1,
        client_of={FIRST_NODE + client: client for client in range(clients)},
    )
    kept: Events = [] if events is None else events
    return Guarded(inner, exchange, lambda *event: kept.append(event))


def update(scale: float, num_examples: int = 1, **arrays: Tensor) -> RecordDict:
    """A sound update, `scale` everywhere, except for the arrays given."""
    tensors = {name: torch.full_like(tensor, scale) for name, tensor in WEIGHTS.items()}
    metrics = MetricRecord({"num-examples": num_examples, "train_loss": scale})
    return RecordDict({ARRAYS: to_record(tensors | arrays), METRICS: metrics})


def one_round(
    strategy: Strategy, contents: Mapping[int, Content], order: Iterable[int] | None = None
) -> dict[str, Tensor] | None:
    """Send the weights, collect the replies in the given order, return the new weights."""
    grid = Nodes(contents)
    messages = list(strategy.configure_train(1, to_record(WEIGHTS), ConfigRecord(), grid))
    replies = sorted(grid.send_and_receive(messages), key=lambda reply: reply.metadata.src_node_id)
    replies = [replies[place] for place in (range(len(replies)) if order is None else order)]
    arrays, _ = strategy.aggregate_train(1, replies)
    return None if arrays is None else to_tensors(arrays)


def test_fedavg_on_guarded_gradients_is_fedsgd() -> None:
    contents = {client: update(0.3 * client, num_examples=1 + client) for client in range(3)}

    averaged = one_round(guarded(FedAvg(**ALL)), contents)  # type: ignore[arg-type]
    stepped = one_round(guarded(FedSGD(learning_rate=0.1, **ALL)), contents)

    mean = (0.3 * 2 + 0.6 * 3) / 6
    expected = {name: tensor - 0.1 * mean for name, tensor in WEIGHTS.items()}
    for found in (averaged, stepped):
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_a_delta_becomes_the_weights_it_leads_to_and_weights_stay_as_they_are() -> None:
    spy = Spy()
    one_round(guarded(spy, kind="delta", clients=1), {0: update(0.25)})
    one_round(guarded(spy, kind="weights", clients=1), {0: update(0.25)})

    shown = [to_tensors(content.array_records[ARRAYS]) for content in spy.shown]
    torch.testing.assert_close(shown[0], {name: t + 0.25 for name, t in WEIGHTS.items()})
    assert all(torch.equal(t, torch.full_like(t, 0.25)) for t in shown[1].values())


def test_running_statistics_beside_a_gradient_become_part_of_the_weights() -> None:
    content = update(0.25)
    content[BUFFERS] = to_record({"mean": torch.tensor([7.0])})
    spy = Spy()

    new = one_round(guarded(spy, buffers={"mean": torch.zeros(1)}, clients=1), {0: content})

    assert new is not None
    assert new["mean"].tolist() == [7]


@pytest.mark.parametrize("inner", [Spy, lambda: FedSGD(server_momentum=0.9, **ALL)])
def test_the_order_of_replies_does_not_change_a_bit(inner: type[Strategy]) -> None:
    generator = torch.Generator().manual_seed(0)
    contents: dict[int, Content] = {
        client: update(0.0, 1 + client, w=torch.randn(2, 2, generator=generator))
        for client in range(7)
    }

    orders = [None, [6, 5, 4, 3, 2, 1, 0], [3, 1, 6, 0, 5, 2, 4]]
    found = [one_round(guarded(inner(), clients=7), contents, order) for order in orders]

    assert found[0] is not None
    for other in found[1:]:
        assert other is not None
        assert all(torch.equal(other[name], found[0][name]) for name in WEIGHTS)


BAD: dict[str, tuple[Content, str, str]] = {
    "error": (Error(2, "ValueError: boom"), "client-failed", "ValueError: boom"),
    "silent error": (Error(2), "client-failed", "error code 2"),
    "NaN": (
        update(1.0, b=torch.tensor([math.nan, 0.0])),
        "update-rejected",
        "'b' holds NaN or infinity",
    ),
    "shape": (
        update(1.0, b=torch.zeros(3)),
        "update-rejected",
        "'b' must have shape (2,), got (3,)",
    ),
    "name": (
        update(1.0, c=torch.zeros(3)),
        "update-rejected",
        "the update has 'c', which the model does not",
    ),
    "examples": (
        update(1.0, num_examples=-4),
        "update-rejected",
        "'num-examples' must be a whole number from 1, got -4",
    ),
}


@pytest.mark.parametrize(("content", "kind", "said"), BAD.values(), ids=BAD)
def test_a_bad_reply_is_an_event_and_the_strategy_never_sees_it(
    content: Content, kind: str, said: str
) -> None:
    events: Events = []
    spy = Spy()
    guard = guarded(spy, events)

    with_bad = one_round(guard, {0: update(0.1), 1: content, 2: update(0.3)})
    tally = guard.tally
    without = one_round(guarded(Spy(), clients=2), {0: update(0.1), 1: update(0.3)})

    assert events == [(kind, said, 1)]
    assert len(spy.shown) == 2
    assert (tally.clients, tally.rejected) == ([0, 2], 1)
    assert tally.bytes_up == 2 * sum(
        len(a.data) for a in update(0.1).array_records[ARRAYS].values()
    )
    torch.testing.assert_close(with_bad, without, rtol=0, atol=0)


def test_when_every_reply_is_bad_the_strategy_is_not_asked() -> None:
    events: Events = []
    spy = Spy()

    new = one_round(guarded(spy, events), {client: Error(2, "boom") for client in range(3)})

    assert new is None
    assert spy.shown == []
    assert [client for _, _, client in events] == [0, 1, 2]


def test_a_reply_of_a_node_that_plays_no_client_is_refused() -> None:
    events: Events = []

    new = one_round(guarded(Spy(), events, clients=1), {0: update(0.1), 1: update(9.0)})

    assert events == [("update-rejected", f"node {FIRST_NODE + 1} plays no client", -1)]
    torch.testing.assert_close(new, one_round(guarded(Spy(), clients=1), {0: update(0.1)}))


class Returns(Spy):
    """A strategy that returns what it is told to."""

    def __init__(self, arrays: ArrayRecord | Exception) -> None:
        super().__init__()
        self.arrays = arrays

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        if isinstance(self.arrays, Exception):
            raise self.arrays
        return self.arrays, None


@pytest.mark.parametrize(
    "weight",
    [torch.full((2, 2), math.nan), torch.full((2, 2), 1e300, dtype=torch.float64)],
    ids=["NaN", "too large for float32"],
)
def test_new_weights_that_are_not_finite_end_the_run(weight: Tensor) -> None:
    strategy = Returns(to_record(WEIGHTS | {"w": weight}))

    with pytest.raises(RunFailed, match=r"round 1: the new weights hold NaN .*learning_rate"):
        one_round(guarded(strategy, clients=1), {0: update(0.1)})


@pytest.mark.parametrize("wrong", [ValueError("boom"), to_record({"w": WEIGHTS["w"]})])
def test_a_strategy_that_fails_on_sound_replies_ends_the_run_by_name(
    wrong: ArrayRecord | Exception,
) -> None:
    with pytest.raises(RunFailed, match=r"round 1: Returns failed on 1 sound replies: \w+Error"):
        one_round(guarded(Returns(wrong), clients=1), {0: update(0.1)})


def test_new_weights_have_the_types_of_the_old() -> None:
    bare = FedAdam(**ALL)  # type: ignore[arg-type]
    assert one_round(bare, {0: update(0.1)})["w"].dtype == torch.float64  # type: ignore[index]

    new = one_round(guarded(FedAdam(**ALL), clients=1), {0: update(0.1)})  # type: ignore[arg-type]

    assert new is not None
    assert {tensor.dtype for tensor in new.values()} == {torch.float32}


def test_evaluations_are_checked_and_averaged_in_order() -> None:
    def evaluation(accuracy: float, examples: int) -> RecordDict:
        values = {"num-examples": examples, "accuracy": accuracy, "loss": 1.0, "more": 3.0}
        return RecordDict({METRICS: MetricRecord(dict(values))})

    events: Events = []
    guard = guarded(Spy(), events, clients=4)
    contents: dict[int, Content] = {
        0: evaluation(0.5, 3),
        1: Error(2, "boom"),
        2: evaluation(1.0, 1),
        3: evaluation(math.nan, 1),
    }
    grid = Nodes(contents)
    messages = guard.configure_evaluate(1, to_record(WEIGHTS), ConfigRecord(), grid)

    metrics = guard.aggregate_evaluate(1, reversed(list(grid.send_and_receive(messages))))

    assert metrics is not None
    assert metrics == {"accuracy": 0.625, "loss": 1.0}
    assert sorted(events, key=lambda event: event[2]) == [
        ("evaluation-rejected", "boom", 1),
        ("evaluation-rejected", "metric 'accuracy' must be a finite number, got nan", 3),
    ]
    assert guard.aggregate_evaluate(1, []) is None
