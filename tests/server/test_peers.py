"""Peers by way of the relay: what they come to, and what happens when some of them fail."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from torch import Tensor

from clients.app import app
from clients.local_training import LocalUpdate, local_update
from fedsim import peer_wire
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import FIRST_NODE
from fedsim.files import digest, read_tensors
from fedsim.peers import federation_of
from fedsim.protocols.simulate import simulate
from fedsim.records import RunDirectory
from fedsim.setup import shares_of
from fedsim.wire import CONFIG, load_state, shared_parameters, to_record, to_tensors
from fedsim.wrapped_grid import WrappedGrid
from server import peers, rounds
from tests.server.crashing import Crashing


def experiment(
    protocol: str,
    topology: str = "ring",
    *,
    num_peers: int = 5,
    num_rounds: int = 3,
    text: str = "",
    options: str = "",
    mixing: str = "metropolis",
) -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = {num_rounds}
        partition = {{ clients = {num_peers} }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        training = {{ batch_size = 4, learning_rate = 0.5 }}
        topology = {{ name = "{topology}", mixing = "{mixing}" }}
        protocol = {{ name = "{protocol}", options = {{ {options} }} }}
        {text}
        """
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def grid_of(tiny: Experiment, run: RunDirectory) -> InProcessGrid:
    return InProcessGrid(tiny, run, app)


def models(tiny: Experiment, run: RunDirectory) -> Tensor:
    """The model of every peer as it stands, (N, D)."""
    federation = federation_of(tiny)
    grid = grid_of(tiny, run)
    relay = peers.Relay(
        federation=federation, run=run, grid=grid, node_of=rounds.find_clients(grid, tiny)
    )
    return torch.stack([vector for vector, _ in relay.models(tiny.rounds).values()])


def average(run: RunDirectory) -> dict[str, Tensor]:
    """The weights of a finished run."""
    tensors, _ = read_tensors(run.checkpoint)
    return {name: one for name, one in tensors.items() if name.startswith("weights/")}


Change = Callable[[int, int, int, Message], Message | None]
"""(round, hop, peer, reply) -> the reply that arrives, if any."""


def when(message: Message) -> tuple[int, int]:
    """The round and the hop that a message is about."""
    config = message.content.config_records[CONFIG]
    number, hop = config["server-round"], config[peer_wire.HOP]
    assert isinstance(number, int)
    assert isinstance(hop, int)
    return number, hop


class Changed(WrappedGrid):
    """A grid whose replies to the hops of a protocol go through `change`."""

    def __init__(self, inner: Grid, change: Change) -> None:
        super().__init__(inner)
        self.change = change

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        arrived = []
        for message in messages:
            (reply,) = self.inner.send_and_receive([message], timeout=timeout)
            if message.metadata.message_type == peers.STEP:
                number, hop = when(message)
                changed = self.change(number, hop, message.metadata.dst_node_id - FIRST_NODE, reply)
            else:
                changed = reply
            if changed is not None:
                arrived.append(changed)
        return arrived


def played(tiny: Experiment) -> Tensor:
    """The models (N, D) that the protocol comes to as function calls, without any message."""
    federation = federation_of(tiny)
    task, layout = federation.task, federation.layout
    shares = shares_of(tiny, task)
    model = federation.start(0)

    def local(peer: int, server_round: int, vector: Tensor) -> Tensor:
        load_state(model, layout.tensors(vector))
        own = shares[peer]
        update = local_update(
            model,
            task.loss,
            task.data.train_inputs[own],
            task.data.train_labels[own],
            tiny.training,
            seed=tiny.seed,
            server_round=server_round,
            client=peer,
        )
        return layout.vector(update.tensors)

    starts = [
        layout.vector(shared_parameters(federation.start(peer))).clone()
        for peer in range(federation.network.num_peers)
    ]
    *_, last = simulate(
        federation.protocol,
        federation.network,
        starts,
        local,
        rounds=tiny.rounds,
        learning_rate=tiny.training.learning_rate,
        seed=tiny.seed,
    )
    return torch.stack([federation.protocol.model(state) for state in last.states])


PROTOCOLS = [
    ("gradient-sharing", "ring", ""),
    ("d-psgd", "ring", ""),
    ("d-psgd", "line", 'order = "combine-then-adapt"'),
    ("d-psgd", "star", 'order = "at-once"'),
    ("gradient-tracking", "ring", ""),
    ("push-sum", "one-peer-exponential", ""),
    ("gossip", "ring", ""),
    ("choco", "ring", ""),
    ("ring-all-reduce", "ring", ""),
    ("tree-all-reduce", "tree", ""),
]


# what peers come to


@pytest.mark.parametrize(("protocol", "topology", "options"), PROTOCOLS)
def test_a_federation_comes_to_the_bits_that_the_protocol_comes_to(
    run: RunDirectory, protocol: str, topology: str, options: str
) -> None:
    tiny = experiment(protocol, topology, options=options)

    peers.train(tiny, run, grid_of(tiny, run))

    assert run.events() == []
    assert torch.equal(models(tiny, run), played(tiny))


def test_d_psgd_on_a_complete_graph_with_uniform_weights_is_fedsgd(tmp_path: Path) -> None:
    alone = experiment("d-psgd", "complete", mixing="uniform")
    served = parse_experiment(
        alone.to_toml(), overrides=["topology.name=server", "protocol.name=server"]
    )
    with_peers = RunDirectory.create(tmp_path, "peers")
    with_server = RunDirectory.create(tmp_path, "server")

    peers.train(alone, with_peers, grid_of(alone, with_peers))
    rounds.train(served, with_server, grid_of(served, with_server))

    ours, theirs = average(with_peers), average(with_server)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], atol=1e-6, rtol=1e-6)
    assert with_peers.rounds()[-1]["consensus_distance"] < 1e-6


def test_local_steps_are_taken_between_messages(run: RunDirectory) -> None:
    text = "training.algorithm = 'fedavg'\ntraining.max_local_steps = 3"
    tiny = parse_experiment(experiment("d-psgd").to_toml(), overrides=text.splitlines())

    peers.train(tiny, run, grid_of(tiny, run))

    assert run.rounds()[-1]["consensus_distance"] > 0
    assert run.events() == []


def test_peers_may_start_each_from_its_own_weights(run: RunDirectory) -> None:
    tiny = parse_experiment(experiment("d-psgd").to_toml(), overrides=["protocol.start=own"])

    peers.train(tiny, run, grid_of(tiny, run))

    distances = [record["consensus_distance"] for record in run.rounds()]
    assert distances[0] > 1
    assert distances[-1] < distances[0]


def test_a_round_says_what_was_sent_and_how_far_peers_are_apart(run: RunDirectory) -> None:
    tiny = experiment("d-psgd")
    size = federation_of(tiny).layout.size

    peers.train(tiny, run, grid_of(tiny, run))

    first = run.rounds()[1]
    assert first["clients"] == [0, 1, 2, 3, 4]
    assert first["messages"] == 10
    header = 128  # numpy's own, of each array
    assert first["bytes_between"] == 10 * (4 * size + header)
    assert len(first["peer_accuracy"]) == 5
    assert first["consensus_distance"] > 0


def test_the_links_of_a_graph_that_changes_are_recorded_round_by_round(run: RunDirectory) -> None:
    tiny = experiment("push-sum", "one-peer-exponential")

    peers.train(tiny, run, grid_of(tiny, run))

    links = [record["links"] for record in run.rounds()[1:]]
    assert [0, 1] in links[0]
    assert links[0] != links[1]


# peers that fail


@pytest.mark.parametrize(("protocol", "topology", "options"), PROTOCOLS)
def test_a_round_goes_on_without_a_peer_that_crashed(
    run: RunDirectory, protocol: str, topology: str, options: str
) -> None:
    tiny = experiment(protocol, topology, options=options)

    peers.train(tiny, run, Crashing(grid_of(tiny, run), (2, 0, 1)))

    records, events = run.rounds(), run.events()
    assert records[2]["failed"] == [1]
    assert events[0]["kind"] == "client-failed"
    assert "out of memory" in events[0]["message"]
    assert records[3]["failed"] == []
    assert all(record["accuracy"] is not None for record in records)
    assert torch.isfinite(models(tiny, run)).all()


def test_the_weights_of_a_crashed_neighbour_are_shared_out(run: RunDirectory) -> None:
    tiny = experiment("d-psgd", num_rounds=1)
    federation = federation_of(tiny)
    whole = RunDirectory.create(run.root, "whole")
    peers.train(tiny, whole, grid_of(tiny, whole))

    peers.train(tiny, run, Crashing(grid_of(tiny, run), (1, 0, 1)))

    # peers 0 and 2 hear two of three models; what they send themselves is what they sent before
    sent = played_models_before_mixing(tiny)
    start = federation.layout.vector(shared_parameters(federation.start(0)))
    found = models(tiny, run)
    torch.testing.assert_close(found[0], (sent[0] + sent[4]) / 2)
    torch.testing.assert_close(found[2], (sent[2] + sent[3]) / 2)
    torch.testing.assert_close(found[3], (sent[2] + sent[3] + sent[4]) / 3)
    torch.testing.assert_close(found[1], start)


def played_models_before_mixing(tiny: Experiment) -> Tensor:
    """What each peer sends in the first round of adapt-then-combine, (N, D)."""
    line = parse_experiment(tiny.to_toml(), overrides=["protocol.options.order=combine-then-adapt"])
    return played(line)  # from equal weights the mean is the start: one step of each


def test_a_peer_that_never_hears_the_end_of_a_round_goes_on_in_the_next(run: RunDirectory) -> None:
    tiny = experiment("d-psgd")

    peers.train(tiny, run, Crashing(grid_of(tiny, run), (2, 1, 3)))

    assert run.rounds()[2]["failed"] == [3]
    assert run.rounds()[3]["clients"] == [0, 1, 2, 3, 4]


def spoiled(value: float, *places: tuple[int, int, int]) -> Change:
    """Put a number into what a peer says, at each (round, hop, peer)."""

    def change(number: int, hop: int, peer: int, reply: Message) -> Message | None:
        if (number, hop, peer) in places:
            for name, record in list(reply.content.array_records.items()):
                tensors = to_tensors(record)
                for tensor in tensors.values():
                    tensor.view(-1)[0] = value
                reply.content[name] = to_record(tensors)
        return reply

    return change


def test_nan_from_a_peer_is_refused_by_its_neighbours_alone(run: RunDirectory) -> None:
    tiny = experiment("d-psgd")

    peers.train(tiny, run, Changed(grid_of(tiny, run), spoiled(float("nan"), (2, 0, 1))))

    events = run.events()
    assert [(event["kind"], event["client"]) for event in events] == [
        ("message-refused", 0),
        ("message-refused", 2),
    ]
    assert "peer 1: 'model' holds NaN or infinity" in events[0]["message"]
    assert run.rounds()[2]["rejected"] == 2
    assert torch.isfinite(models(tiny, run)).all()


@pytest.mark.parametrize(
    ("protocol", "topology"), [("ring-all-reduce", "ring"), ("tree-all-reduce", "star")]
)
def test_a_collective_leaves_out_who_sends_nan_and_not_who_hears_it(
    run: RunDirectory, protocol: str, topology: str
) -> None:
    tiny = experiment(protocol, topology)

    peers.train(tiny, run, Changed(grid_of(tiny, run), spoiled(float("nan"), (2, 1, 1))))

    assert run.rounds()[2]["failed"] == [1]
    assert [event["kind"] for event in run.events()] == [
        *("message-refused", "begun-again", "caught-up"),
    ]
    found = models(tiny, run)
    assert all(torch.equal(found[0], other) for other in found)


def test_a_peer_whose_own_update_is_no_number_sits_out_the_round(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = experiment("d-psgd")

    def diverging(*args: object, server_round: int, client: int, **more: Any) -> LocalUpdate:
        update = local_update(*args, server_round=server_round, client=client, **more)  # type: ignore[arg-type]
        if (server_round, client) == (2, 1):
            spoilt = {name: torch.full_like(one, torch.inf) for name, one in update.tensors.items()}
            return replace(update, tensors=spoilt)
        return update

    monkeypatch.setattr("clients.peer.local_update", diverging)

    peers.train(tiny, run, grid_of(tiny, run))

    assert run.rounds()[2]["failed"] == [1]
    assert "its own update holds NaN or infinity" in run.events()[0]["message"]
    assert torch.isfinite(models(tiny, run)).all()


def test_a_peer_that_comes_late_is_left_out_of_the_round(run: RunDirectory) -> None:
    tiny = experiment("d-psgd")

    def late(number: int, hop: int, peer: int, reply: Message) -> Message | None:
        return None if (number, hop, peer) == (2, 0, 4) else reply

    peers.train(tiny, run, Changed(grid_of(tiny, run), late))

    assert [event["kind"] for event in run.events()] == ["no-reply"]
    assert run.rounds()[2]["failed"] == [4]
    assert run.rounds()[2]["messages"] == 8


def test_a_message_to_a_stranger_is_not_delivered(run: RunDirectory) -> None:
    tiny = experiment("d-psgd")

    def shouting(number: int, hop: int, peer: int, reply: Message) -> Message | None:
        if (number, hop, peer) == (1, 0, 0):
            reply.content.config_records["about-000"]["to"] = [1, 2, 3, 4]
        return reply

    peers.train(tiny, run, Changed(grid_of(tiny, run), shouting))

    assert run.rounds()[1]["messages"] == 10


@pytest.mark.parametrize(
    ("protocol", "topology"), [("ring-all-reduce", "ring"), ("tree-all-reduce", "tree")]
)
@pytest.mark.parametrize("hop", [0, 1, 3])
def test_a_collective_begins_again_among_those_that_are_left(
    run: RunDirectory, protocol: str, topology: str, hop: int
) -> None:
    tiny = experiment(protocol, topology)

    peers.train(tiny, run, Crashing(grid_of(tiny, run), (2, hop, 1)))

    kinds = [event["kind"] for event in run.events()]
    assert kinds == (
        ["client-failed", "caught-up"]
        if hop == 0
        else ["client-failed", "begun-again", "caught-up"]
    )
    assert run.rounds()[2]["consensus_distance"] > 0  # the lost one stands where it stood
    assert run.rounds()[3]["consensus_distance"] == pytest.approx(0, abs=1e-6)
    found = models(tiny, run)
    assert all(torch.equal(found[0], other) for other in found)


def test_the_mass_of_push_sum_is_kept_when_a_receiver_fails(run: RunDirectory) -> None:
    tiny = experiment("push-sum", num_rounds=4)

    peers.train(tiny, run, Crashing(grid_of(tiny, run), (2, 1, 1)))

    mass = sum(float(state["mass"]) for state in states(tiny, run))
    assert mass == pytest.approx(5, abs=1e-12)


def test_nobody_shares_with_a_peer_that_stays_dead_until_it_is_back(tmp_path: Path) -> None:
    tiny = experiment("push-sum", num_rounds=9)
    dead = [(number, 0, 2) for number in range(2, 6)]
    whole = RunDirectory.create(tmp_path, "whole")
    killed = RunDirectory.create(tmp_path, "killed")

    peers.train(tiny, whole, Crashing(grid_of(tiny, whole), *dead))

    links = [one["messages"] for one in whole.rounds()[1:]]
    # two neighbours; in round 6 it speaks again, and nobody knows yet that it will listen
    assert links == [10, 8, 6, 6, 6, 8, 10, 10, 10]
    mass = sum(float(state["mass"]) for state in states(tiny, whole))
    assert mass == pytest.approx(5, abs=1e-12)
    with pytest.raises(KeyboardInterrupt):
        peers.train(tiny, killed, Killed(Crashing(grid_of(tiny, killed), *dead), (4, 0)))
    peers.train(tiny, killed, Crashing(grid_of(tiny, killed), *dead))
    assert torch.equal(models(tiny, killed), models(tiny, whole))


@pytest.mark.parametrize(
    ("protocol", "topology"), [("ring-all-reduce", "ring"), ("tree-all-reduce", "tree")]
)
def test_a_round_in_which_everybody_is_lost_makes_nobody_up_to_date(
    run: RunDirectory, protocol: str, topology: str
) -> None:
    tiny = experiment(protocol, topology)
    missed = (1, 0, 3)  # then nobody brings it up to date: all the others fail
    others = [(2, 0, peer) for peer in (0, 1, 2, 4)]
    silent = [(1, None, peer) for peer in (0, 1, 2, 4)]

    peers.train(tiny, run, Crashing(grid_of(tiny, run), missed, *others, *silent))

    assert [one["clients"] for one in run.rounds()[1:]] == [[0, 1, 2, 4], [], [0, 1, 2, 3, 4]]
    found = models(tiny, run)
    assert all(torch.equal(found[0], other) for other in found)


def test_those_behind_go_on_if_all_that_were_up_to_date_are_gone(run: RunDirectory) -> None:
    tiny = experiment("ring-all-reduce", num_peers=3, num_rounds=5)
    gone = [(number, hop, 2) for number in range(2, 6) for hop in (0, None)]
    missed = [(1, 0, 0), (1, 0, 1), (1, None, 2)]

    peers.train(tiny, run, Crashing(grid_of(tiny, run), *missed, *gone))

    assert [one["clients"] for one in run.rounds()[1:]] == [[2], [], [0, 1], [0, 1], [0, 1]]
    (begun,) = [one["message"] for one in run.events() if one["kind"] == "begun-again"]
    assert "peers 2 were lost; the 2 that are left began again" in begun
    found = models(tiny, run)
    assert torch.equal(found[0], found[1])


def states(tiny: Experiment, run: RunDirectory) -> Sequence[dict[str, Tensor]]:
    """What each peer remembers of its protocol at the end of a run."""
    found = []
    for peer in range(tiny.partition.clients):
        path = run.memory / f"client-{peer}-peer" / f"round-{tiny.rounds:05d}.safetensors"
        tensors, _ = read_tensors(path)
        found.append(
            {name.removeprefix("state/"): one for name, one in tensors.items() if "state/" in name}
        )
    return found


# going on


class Killed(WrappedGrid):
    """A grid that dies at one hop of one round, after so many peers did their work."""

    def __init__(self, inner: Grid, place: tuple[int, int]) -> None:
        super().__init__(inner)
        self.place = place

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        step = bool(messages) and messages[0].metadata.message_type == peers.STEP
        if step and when(messages[0]) == self.place:
            list(self.inner.send_and_receive(messages[:2], timeout=timeout))
            raise KeyboardInterrupt
        return self.inner.send_and_receive(messages, timeout=timeout)


@pytest.mark.parametrize(("protocol", "topology", "options"), PROTOCOLS)
@pytest.mark.parametrize("hop", [0, 1])
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, protocol: str, topology: str, options: str, hop: int
) -> None:
    tiny = experiment(protocol, topology, options=options)
    whole = RunDirectory.create(tmp_path, "whole")
    peers.train(tiny, whole, grid_of(tiny, whole))
    run = RunDirectory.create(tmp_path, "killed")

    with pytest.raises(KeyboardInterrupt):
        peers.train(tiny, run, Killed(grid_of(tiny, run), (2, hop)))
    peers.train(tiny, run, grid_of(tiny, run))

    assert digest(average(run)) == digest(average(whole))
    assert torch.equal(models(tiny, run), models(tiny, whole))


def test_what_is_late_survives_a_kill(tmp_path: Path) -> None:
    tiny = experiment("push-sum", num_rounds=4)
    run = RunDirectory.create(tmp_path, "killed")

    with pytest.raises(KeyboardInterrupt):
        peers.train(tiny, run, Killed(Crashing(grid_of(tiny, run), (2, 1, 1)), (3, 0)))
    peers.train(tiny, run, grid_of(tiny, run))

    mass = sum(float(state["mass"]) for state in states(tiny, run))
    assert mass == pytest.approx(5, abs=1e-12)


def test_the_relay_hands_arrays_on_as_they_are(run: RunDirectory) -> None:
    tiny = experiment("d-psgd", num_rounds=1)
    sent: list[ArrayRecord] = []
    brought: list[ArrayRecord] = []

    class Watching(WrappedGrid):
        def send_and_receive(
            self, messages: Iterable[Message], *, timeout: float | None = None
        ) -> Iterable[Message]:
            messages = list(messages)
            if messages[0].metadata.message_type == peers.STEP:
                for message in messages:
                    brought.extend(message.content.array_records.values())
            replies = list(self.inner.send_and_receive(messages, timeout=timeout))
            if messages[0].metadata.message_type == peers.STEP:
                for reply in replies:
                    sent.extend(reply.content.array_records.values())
            return replies

    peers.train(tiny, run, Watching(grid_of(tiny, run)))

    assert {id(record) for record in brought} == {id(record) for record in sent}


@pytest.mark.parametrize(
    ("protocol", "topology"), [("ring-all-reduce", "ring"), ("tree-all-reduce", "star")]
)
def test_members_whose_last_words_were_lost_may_have_stepped_and_begin_anew_from_one(
    run: RunDirectory, protocol: str, topology: str
) -> None:
    tiny = experiment(protocol, topology, num_peers=3)
    federation = federation_of(tiny)
    last = federation.protocol.num_hops(3, federation.network.edges(1))
    lost: set[int] = set()

    def lose(number: int, hop: int, peer: int, reply: Message) -> Message | None:
        """Lose what two say after their step, and what the third says when it begins again."""
        if number == 2 and ((hop == last and peer > 0) or (hop == 1 and 1 in lost)):
            lost.add(peer)
            return None
        return reply

    peers.train(tiny, run, Changed(grid_of(tiny, run), lose))

    assert lost == {0, 1, 2}
    assert sum(event["kind"] == "caught-up" for event in run.events()) == 2
    found = models(tiny, run)
    assert all(torch.equal(found[0], other) for other in found)
