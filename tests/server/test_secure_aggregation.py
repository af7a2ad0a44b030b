"""Secure aggregation in a run: exact sums, drop-outs, what is heard, and what is counted."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp import Grid

from attacks.observation import Kind, Tensors
from clients.app import app
from fedsim.config import Experiment, parse_experiment
from fedsim.driver import run as run_experiment
from fedsim.engines.in_process import InProcessGrid
from fedsim.engines.local import CLIENT_FAILED, FIRST_NODE, failure
from fedsim.files import digest, read_tensors
from fedsim.records import EVERYBODY, RunDirectory
from fedsim.schemas.course import Round
from fedsim.secure_sum.field import Contribution, Elements, Layout, Quantiser, decode, encode
from fedsim.secure_sum.messages import MASKED
from fedsim.seeds import stream
from fedsim.setup import task_of
from fedsim.truth import unseal
from fedsim.wrapped_grid import WrappedGrid
from server.guard import Exchange
from server.rounds import train
from server.secure_aggregation import as_update

STEP = Quantiser(8.0, 20, "stochastic").step
DROPPED = (1, 4, 6)
TRAINING = {
    "gradient": "",
    "weights": 'algorithm = "fedavg", max_local_steps = 1, learning_rate = 0.5',
    "delta": 'algorithm = "fedavg", max_local_steps = 1, learning_rate = 0.5, returns = "delta"',
}


def experiment(
    options: str | None = "",
    *,
    clients: int = 4,
    training: str = "",
    threat: str = "curious-server",
    more: str = "",
    model: str = '{ name = "mlp", options = { hidden = [6] } }',
) -> Experiment:
    """Return two rounds; `options` of secure aggregation, None without it."""
    secure = f'[[defenses]]\nname = "secure-aggregation"\noptions = {{ {options} }}'
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 2
        partition = {{ clients = {clients}, name = "linear" }}
        model = {model}
        training = {{ batch_size = 4{training and ", "}{training} }}
        adversary = {{ threat = "{threat}" }}
        {more}
        {"" if options is None else secure}
        """
    )


class Runs:
    """Makes run directories, and remembers what was trained in them: tests only read it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.trained: dict[str, RunDirectory] = {}

    def __call__(self) -> RunDirectory:
        return RunDirectory.create(self.folder, "tiny")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """What makes empty run directories."""
    return Runs(tmp_path_factory.mktemp("runs"))


def trained(
    runs: Runs, tiny: Experiment, around: Callable[[Grid], Grid] | None = None
) -> RunDirectory:
    key = tiny.model_dump_json()
    if around is None and key in runs.trained:
        return runs.trained[key]
    run = runs()
    grid: Grid = InProcessGrid(tiny, run, app)
    train(tiny, run, around(grid) if around else grid)
    if around is None:
        runs.trained[key] = run
    return run


def heard(run: RunDirectory, server_round: int, sender: str) -> Tensors:
    return run.read_observation(f"round-{server_round:05d}-{sender}-to-server").update


def weights(run: RunDirectory) -> Tensors:
    return read_tensors(run.checkpoint)[0]


def final(run: RunDirectory) -> tuple[str, str]:
    return digest(weights(run)), run.views_sha256()


# sums


def exact_mean(plain: RunDirectory, survivors: Iterable[int]) -> Tensors:
    """Return the mean that the survivors' own rounded gradients come to, added one by one."""
    model = task_of(experiment()).build_model(stream(0, "model"))
    names = [name for name, _ in model.named_parameters()]
    quantiser, layout = Quantiser(8.0, 20, "stochastic"), None
    total: Elements | None = None
    for client in survivors:
        found = heard(plain, 1, f"client-{client}")
        gradient = {name: found[name] for name in names}
        layout = Layout.of(gradient, {})
        rng = stream(0, "round", 1, "client", client, "secure-aggregation", "rounding")
        own = Contribution(gradient, {}, 4, 0.0)
        levels = encode(own, layout, quantiser, quantiser, field_bits=32, rng=rng)
        total = levels if total is None else total + levels
    assert total is not None
    assert layout is not None
    mean = decode(total, layout, quantiser, quantiser)
    assert mean is not None
    return {name: tensor.float() for name, tensor in mean.update.items()}


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "unmask"])
def test_of_ten_clients_three_drop_out_at_a_stage_and_the_sum_of_the_rest_is_exact(
    runs: Runs, stage: str
) -> None:
    tiny = experiment(f"drop = {{ {stage} = {list(DROPPED)} }}", clients=10)
    plain = trained(runs, experiment(None, clients=10))

    run = trained(runs, tiny)

    left = [n for n in range(10) if stage == "unmask" or n not in DROPPED]
    found, wanted = heard(run, 1, EVERYBODY), exact_mean(plain, left)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    records = run.rounds()[1:]
    assert [record["clients"] for record in records] == [left, left]
    answered = records[0]["secure_aggregation"]
    remaining = [n for n in range(10) if n not in DROPPED]
    places = ["keys", "shares", "masked", "unmask"]
    assert answered == {
        one: remaining if places.index(one) >= places.index(stage) else list(range(10))
        for one in places
    }
    lost = [(event["kind"], event["client"]) for event in run.events() if event["round"] == 1]
    assert lost == [("client-dropped", n) for n in DROPPED]
    assert records[0]["rejected"] == 3
    Round.model_validate(records[0])


@pytest.mark.parametrize("stage", ["keys", "shares", "masked", "unmask"])
def test_below_the_threshold_a_round_gives_no_update_and_the_run_goes_on(
    runs: Runs, stage: str
) -> None:
    # four of ten are lost, seven are needed
    tiny = experiment(f"drop = {{ {stage} = [1, 4, 6, 9] }}", clients=10)

    run = trained(runs, tiny)

    assert [record["clients"] for record in run.rounds()[1:]] == [[], []]
    assert run.rounds()[1]["accuracy"] == run.rounds()[0]["accuracy"]
    assert list((run.root / "observations").glob("*-all-*")) == []
    told = [event for event in run.events() if event["kind"] == "round-without-update"]
    assert [event["round"] for event in told] == [1, 2]
    assert (
        f"at stage '{stage}', 6 of 10 clients answered, 7 are needed, and nothing was unmasked"
        in told[0]["message"]
    )


class Changed(WrappedGrid):
    """A grid whose replies go through `change`, as long as they are of round 1."""

    def __init__(
        self, inner: Grid, change: Callable[[int, str, Message, Message], Message]
    ) -> None:
        super().__init__(inner)
        self.change = change

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        messages = list(messages)
        replies = self.inner.send_and_receive(messages, timeout=timeout)
        changed = []
        for message, reply in zip(messages, replies, strict=True):
            config: Mapping[str, object] = message.content.config_records.get("config", {})
            client = message.metadata.dst_node_id - FIRST_NODE
            if config.get("server-round") == 1:
                kind = message.metadata.message_type.rpartition(".")[2]
                reply = self.change(client, kind, message, reply)
            changed.append(reply)
        return changed


def test_after_a_round_that_was_given_up_the_next_one_sums(runs: Runs) -> None:
    def failing(client: int, kind: str, message: Message, reply: Message) -> Message:
        dies = client < 2 and kind == "secure_unmask"
        return failure(message, CLIENT_FAILED, "boom") if dies else reply

    run = trained(runs, experiment(), lambda grid: Changed(grid, failing))

    assert [record["clients"] for record in run.rounds()[1:]] == [[], [0, 1, 2, 3]]
    kinds = [event["kind"] for event in run.events()]
    assert kinds == ["client-failed", "client-failed", "round-without-update"]


def broken(part: str) -> Callable[[int, str, Message, Message], Message]:
    """Break what client 2 sends in one stage."""

    def change(client: int, kind: str, message: Message, reply: Message) -> Message:
        content = {"secure_keys": "keys", "train": "masked"}.get(kind, kind.rpartition("_")[2])
        if client != 2 or content != part:
            return reply
        if part == "masked":
            wrong = {MASKED: ArrayRecord({MASKED: Array(np.zeros(3, np.uint32))})}
        else:
            wrong = {"secure": ArrayRecord({"nothing": Array(np.zeros(3))})}
        reply.content = RecordDict(dict(wrong))
        return reply

    return change


@pytest.mark.parametrize("part", ["keys", "shares", "masked", "unmask"])
def test_what_does_not_have_the_form_agreed_on_counts_as_a_drop_out(runs: Runs, part: str) -> None:
    run = trained(runs, experiment(), lambda grid: Changed(grid, broken(part)))

    left = [0, 1, 2, 3] if part == "unmask" else [0, 1, 3]
    assert run.rounds()[1]["clients"] == left
    assert [(e["kind"], e["client"]) for e in run.events()] == [("update-rejected", 2)]


def test_an_update_that_comes_without_masks_is_refused(runs: Runs) -> None:
    bare = trained(runs, experiment(None))
    gradient = heard(bare, 1, "client-2")

    def change(client: int, kind: str, message: Message, reply: Message) -> Message:
        if client == 2 and kind == "train":
            arrays = ArrayRecord({name: Array(t.numpy()) for name, t in gradient.items()})
            reply.content = RecordDict({"arrays": arrays})
        return reply

    run = trained(runs, experiment(), lambda grid: Changed(grid, change))

    assert run.rounds()[1]["clients"] == [0, 1, 3]
    assert "without masks" in run.events()[0]["message"]


def test_what_a_diverged_client_computes_is_not_hidden_in_a_sum(runs: Runs) -> None:
    tiny = experiment(training='algorithm = "fedavg", learning_rate = 1e30, max_local_steps = 3')

    run = trained(runs, tiny)

    assert run.rounds()[1]["clients"] == []
    failed = [event for event in run.events() if event["kind"] == "client-failed"]
    assert "NaN or infinity: it is not added" in failed[0]["message"]


# what is learned is what is learned without


STRATEGIES = [
    ("fedsgd", ""),
    ("fedsgd", "server = { options = { server_momentum = 0.9 } }"),
    ("fedavg", ""),
    ("fedavg", 'server = { strategy = "fedavgm", options = { server_momentum = 0.5 } }'),
    ("fedavg", 'server = { strategy = "fedadam", options = { eta = 0.01, tau = 0.01 } }'),
    ("fedavg", 'server = { strategy = "fedprox", options = { proximal_mu = 0.1 } }'),
    ("fedavg", "server = { clients_per_round = 3 }"),
]


@pytest.mark.parametrize(("algorithm", "more"), STRATEGIES)
def test_every_strategy_that_takes_a_mean_learns_what_it_learns_without_up_to_rounding(
    runs: Runs, algorithm: str, more: str
) -> None:
    training = f'algorithm = "{algorithm}", learning_rate = 0.5, max_local_steps = 3'
    pair = [
        trained(runs, experiment(options, training=training, more=more))
        for options in (None, 'rounding = "nearest"')
    ]

    plain, secure = map(weights, pair)
    moved = weights(trained(runs, experiment(None, training="learning_rate = 1e-9")))  # to nowhere
    for name in (name for name in plain if name.startswith("weights/")):
        # the last step of Adam is 0.01 * m / (sqrt(v) + 0.01): rounding grows by 1 at most
        assert (plain[name] - secure[name]).abs().max() < 4 * STEP
        assert (plain[name] - moved[name]).abs().max() > 100 * STEP
    losses = [run.rounds()[2]["train_loss"] for run in pair]
    assert losses[1] == pytest.approx(losses[0], abs=1e-3)
    assert pair[0].rounds()[1]["clients"] == pair[1].rounds()[1]["clients"]


@pytest.mark.slow
@pytest.mark.parametrize("training", TRAINING.values())
def test_running_statistics_are_in_the_sum(runs: Runs, training: str) -> None:
    model = '{ name = "resnet20" }'
    pair = [
        trained(runs, experiment(options, training=training, model=model))
        for options in (None, 'rounding = "nearest"')
    ]

    plain, secure = map(weights, pair)
    statistics = [name for name in plain if "running_" in name]
    assert statistics
    bound = Quantiser(64.0, 20, "nearest").bound
    for name in statistics:
        assert (plain[name] - secure[name]).abs().max() < 2 * bound + 1e-4
        assert (secure[name] - (1 if "var" in name else 0)).abs().max() > 100 * bound


def test_rounding_makes_no_variance_negative() -> None:
    like = {"running_var": torch.zeros(3)}
    exchange = Exchange(
        kind="gradient", parameters={}, buffers=like, learning_rate=0.1, client_of={}
    )
    before = torch.tensor([1e-6, 1.0, 1.0])
    mean = Contribution({}, {"running_var": torch.tensor([-1e-4, -1.00005, -1.5])}, 1, 0.0)

    found = as_update(mean, exchange, {"running_var": before}, buffer_error=1e-4)

    torch.testing.assert_close(found.buffers["running_var"], torch.tensor([0.0, 0.0, -0.5]))


# what is heard


@pytest.mark.parametrize("training", TRAINING.values())
def test_a_curious_server_hears_masked_updates_and_the_mean_of_everybody(
    runs: Runs, training: str
) -> None:
    ideal = trained(runs, experiment(None, training=training, threat="aggregate-server"))

    run = trained(runs, experiment(training=training))

    seen = {one["id"]: one for one in run.observation_records() if one["round"] == 1}
    assert [(one["sender"], one["kind"]) for one in seen.values()] == [
        ("all", "aggregate"),
        *((f"client-{n}", "masked-share") for n in range(4)),
    ]
    assert seen["round-00001-all-to-server"]["members"] == [f"client-{n}" for n in range(4)]
    exact, found = heard(ideal, 1, EVERYBODY), heard(run, 1, EVERYBODY)
    rate = 0.5 if training else 1.0  # a change of weights is rounded, a gradient is heard
    for name, tensor in exact.items():
        assert (tensor - found[name]).abs().max() <= STEP / rate + 1e-6
    share = run.read_observation("round-00001-client-0-to-server")
    assert share.kind is Kind.MASKED_SHARE
    assert share.num_examples is None
    assert share.weights is not None
    assert {name: (t.shape, t.dtype) for name, t in share.update.items()} == {
        name: (t.shape, torch.uint32) for name, t in exact.items()
    }
    truth = unseal(run, 1, EVERYBODY)
    assert truth is not None
    assert len(truth[0]) == 16


def test_an_idealised_server_hears_the_mean_alone_and_the_same(runs: Runs) -> None:
    curious = trained(runs, experiment())

    run = trained(runs, experiment(threat="aggregate-server"))

    assert {one["sender"] for one in run.observation_records()} == {EVERYBODY}
    assert digest(heard(run, 2, EVERYBODY)) == digest(heard(curious, 2, EVERYBODY))


@pytest.mark.parametrize("threat", ["link-tap", "uplink-tap"])
def test_a_tap_hears_masked_updates_alone(runs: Runs, threat: str) -> None:
    curious = trained(runs, experiment())

    run = trained(runs, experiment(threat=threat))

    records = run.observation_records()
    assert {one["kind"] for one in records} == {"masked-share"}
    assert len(records) == 8
    assert digest(heard(run, 2, "client-3")) == digest(heard(curious, 2, "client-3"))


def test_masked_updates_look_uniform_and_do_not_depend_on_the_updates(runs: Runs) -> None:
    plain = trained(runs, experiment(None, model='{ name = "mlp", options = { hidden = [64] } }'))

    run = trained(runs, experiment(model='{ name = "mlp", options = { hidden = [64] } }'))

    for n in range(4):
        share = torch.cat([t.flatten() for t in heard(run, 1, f"client-{n}").values()])
        own = torch.cat([t.flatten() for t in heard(plain, 1, f"client-{n}").values()])
        signed = share.view(torch.int32).double()
        count = len(share)
        assert abs(np.corrcoef(signed, own)[0, 1]) < 4 / count**0.5
        uniform = signed / 2**32 + 0.5
        # standard errors of mean and variance of uniform numbers
        assert float(uniform.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / count) ** 0.5)
        assert float(uniform.var()) == pytest.approx(1 / 12, abs=4 * (1 / 180 / count) ** 0.5)


@pytest.mark.slow
def test_attacks_on_masked_updates_fail_with_a_reason_and_are_scored_as_failed(
    tmp_path: Path,
) -> None:
    tiny = experiment(
        more=f"""
        output = {{ directory = "{tmp_path}" }}
        [[attacks]]
        name = "inverting-gradients"
        options = {{ steps = 2 }}
        """
    )

    result = run_experiment(tiny)

    scores = {score["victim"]: score for score in result.scores if score["round"] == 1}
    assert scores.pop(EVERYBODY)["status"] == "done"
    assert [score["status"] for score in scores.values()] == ["failed"] * 4
    assert all("uniformly random" in score["reason"] for score in scores.values())
    assert all(score["success_rate"] == 0.0 for score in scores.values())
    assert all(score["defense"] == "secure-aggregation" for score in scores.values())


@pytest.mark.slow
def test_a_malicious_server_hears_the_sum_it_has_made_and_the_weights_stay(tmp_path: Path) -> None:
    more = f"""
        output = {{ directory = "{tmp_path}" }}
        [[attacks]]
        name = "eluding"
        options = {{ then = "linear" }}
        """
    tiny = parse_experiment(
        experiment(threat="malicious-aggregate-server", more=more).to_toml(),
        overrides=["training.batch_size=1"],
    )

    result = run_experiment(tiny)

    run = RunDirectory(result.directory)
    assert [record["tampered"] != [] for record in run.rounds()[1:]] == [True, True]
    assert [record["clients"] for record in run.rounds()[1:]] == [[], []]
    assert {one["kind"] for one in run.observation_records()} == {"aggregate"}
    assert run.observation_records()[0]["sender"] == "client-0"
    # the target's gradient is what is left of the mean, over four clients
    assert all(score["status"] == "done" for score in result.scores)


# what it costs, and what is kept


def test_the_arrays_of_all_four_stages_are_counted(runs: Runs) -> None:
    plain, run = trained(runs, experiment(None)), trained(runs, experiment())

    model = sum(t.numel() for t in heard(plain, 1, "client-0").values())
    record, before = run.rounds()[1], plain.rounds()[1]
    # per client: two keys; shares of two secrets for each other client, sealed; the masked vector
    # with weight and loss; a share of one secret per client. Arrays have headers of 128 bytes.
    pairs = {"keys": 2 * (32 + 8), "shares": 3 * (8 + 48), "unmask": 4 * (8 + 16)}
    headers = 128 * (4 + 2 + 1 + 4)
    assert record["bytes_up"] == 4 * (sum(pairs.values()) + 4 * (model + 2) + headers)
    down = {"shares": 4 * 2 * (32 + 8), "masked": 4 * 8, "unmask": 4 * 8 + 3 * (8 + 48)}
    extra = 4 * (sum(down.values()) + 128 * (4 + 1 + 3))
    assert record["bytes_down"] == before["bytes_down"] + extra
    assert record["replies"] == 16


def test_secrets_are_kept_from_others_and_forgotten_after_the_round(runs: Runs) -> None:
    kept: list[tuple[int, list[str]]] = []

    def look(client: int, kind: str, message: Message, reply: Message) -> Message:
        if kind == "train" and client == 3:
            names = sorted(path.name for path in folder.memory.iterdir())
            kept.append((folder.memory.stat().st_mode & 0o777, names))
        return reply

    folder = runs()
    tiny = experiment()
    train(tiny, folder, Changed(InProcessGrid(tiny, folder, app), look))

    assert kept == [(0o700, [f"secure-aggregation-client-{n}.json" for n in range(4)])]
    assert list(folder.memory.iterdir()) == []


def test_a_run_that_goes_on_after_a_kill_ends_with_the_same_bits(runs: Runs) -> None:
    options = "drop_probability = { masked = 0.3 }, threshold = 3"
    whole = trained(runs, experiment(options, clients=8))
    cut = runs()

    class Killed(Exception):
        pass

    def kill(client: int, kind: str, message: Message, reply: Message) -> Message:
        raise Killed

    tiny = experiment(options, clients=8)
    grid = InProcessGrid(tiny, cut, app)
    with pytest.raises(Killed):
        train(tiny, cut, Changed(grid, lambda *a: kill(*a) if a[1] == "secure_unmask" else a[3]))
    train(tiny, cut, InProcessGrid(tiny, cut, app))

    assert final(cut) == final(whole)
    assert any(event["kind"] == "client-dropped" for event in whole.events())


def test_the_randomness_of_the_system_changes_every_share_and_no_sum(runs: Runs) -> None:
    seeded = trained(runs, experiment())

    system = trained(runs, experiment('randomness = "system"'))

    assert digest(weights(system)) == digest(weights(seeded))
    first = next(iter(heard(system, 1, "client-0")))
    one, other = (heard(run, 1, "client-0")[first] for run in (system, seeded))
    assert (one != other).double().mean() > 0.9


def test_a_check_that_refuses_costs_a_client_its_place_in_the_sum(runs: Runs) -> None:
    more = """
        [clients]
        checks = ["dead-layer"]
        on_alarm = "refuse"
        [clients.options.dead-layer]
        """
    run = trained(runs, experiment(more=more))

    assert run.rounds()[1]["clients"] == [0, 1, 2, 3]
    assert run.rounds()[1]["alarms"] == []
