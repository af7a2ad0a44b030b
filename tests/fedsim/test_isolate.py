"""From views to updates: exact where they follow from what was heard, guessed where they do not."""

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attacks.auto import Auto
from attacks.linear import LinearInversion
from attacks.observation import Budget, Knowledge
from clients.app import app
from fedsim import equations
from fedsim.config import Experiment, parse_experiment
from fedsim.driver import attack_again, resume, run
from fedsim.engines.in_process import InProcessGrid
from fedsim.files import Record, read_json, replace_json, replace_tensors
from fedsim.models.build import build_model
from fedsim.peers import federation_of
from fedsim.records import RunDirectory
from fedsim.stages.among_peers import is_mistaken
from fedsim.stages.isolate import Isolator
from fedsim.stages.score import isolation_errors
from fedsim.truth import unseal, unseal_update
from fedsim.views import views_of
from server.peers import train
from tests.server.crashing import Crashing

RING = 'name = "ring"'
COMPLETE = 'name = "complete", mixing = "uniform"'
NEIGHBOUR = 'threat = "curious-neighbour"'


def experiment(
    protocol: str,
    adversary: str = NEIGHBOUR,
    topology: str = RING,
    *,
    num_peers: int = 5,
    rounds: int = 2,
    extra: str = "",
) -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = {rounds}
        partition = {{ clients = {num_peers} }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        training = {{ batch_size = 1, learning_rate = 0.1 }}
        topology = {{ {topology} }}
        protocol = {{ {protocol} }}
        adversary = {{ {adversary} }}
        {extra}
        """
    )


def trained(tiny: Experiment, folder: Path) -> RunDirectory:
    run = RunDirectory.create(folder, "tiny")
    train(tiny, run, InProcessGrid(tiny, run, app))
    return run


def isolated(tiny: Experiment, folder: Path) -> dict[tuple[int, int], Record]:
    """Records of what was told, by peer and round, with the errors that scoring finds."""
    run = trained(tiny, folder)
    Isolator(tiny, run).step(trained=True)
    found = {}
    for record in run.observation_records():
        scored = {"observation": record["id"], "round": record["round"], "victim": record["sender"]}
        errors = isolation_errors(run, scored)
        peer = int(record["sender"].removeprefix("client-"))
        found[peer, record["round"]] = record | {"errors": errors}
    return found


def how(found: dict[tuple[int, int], Record]) -> dict[tuple[int, int], str]:
    return {update: record["isolated"] for update, record in found.items()}


@pytest.mark.parametrize(
    ("protocol", "told_after"),
    [
        ('name = "d-psgd"', 1),
        ('name = "d-psgd", options = { order = "combine-then-adapt" }', 2),
        ('name = "d-psgd", options = { order = "at-once" }', 2),
        ('name = "push-sum"', 1),
        ('name = "gradient-tracking"', 1),
    ],
)
def test_peers_that_start_alike_give_their_first_gradient_away(
    tmp_path: Path, protocol: str, told_after: int
) -> None:
    found = isolated(experiment(protocol), tmp_path)

    for peer in (1, 4):
        record = found[peer, 1]
        update_error, weights_error = record["errors"]
        assert record["isolated"] in ("heard", "exact")
        assert record["told_after"] == told_after
        assert update_error < 1e-5  # rounding, over a learning rate of 0.1
        assert weights_error < 1e-6


@pytest.mark.parametrize("topology", [COMPLETE, 'name = "ring"'])
def test_whose_neighbours_are_all_heard_gives_every_gradient_away(
    tmp_path: Path, topology: str
) -> None:
    tiny = experiment('name = "d-psgd"', topology=topology, num_peers=3, rounds=4)
    found = isolated(tiny, tmp_path)

    assert set(how(found)) == {(peer, number) for peer in (1, 2) for number in range(1, 5)}
    assert set(how(found).values()) == {"exact"}
    assert max(one["errors"][0] for one in found.values()) < 1e-4
    assert max(one["errors"][1] for one in found.values()) < 1e-6


def test_whose_neighbours_are_not_all_heard_is_guessed_with_an_error_that_is_known(
    tmp_path: Path,
) -> None:
    found = isolated(experiment('name = "d-psgd"', rounds=4), tmp_path)

    later = [one for (_, number), one in found.items() if number > 1]
    assert {one["isolated"] for one in later} == {"estimated"}
    for one in later:  # within a factor that holds for two neighbours and four rounds
        assert 0.5 < one["errors"][0] / one["expected_error"] < 2


def test_the_error_of_weights_is_known_and_none_where_they_are(tmp_path: Path) -> None:
    found = isolated(experiment('name = "gradient-sharing"', num_peers=8, rounds=3), tmp_path)

    assert {one["expected_weights_error"] for (_, n), one in found.items() if n == 1} == {0.0}
    for one in (record for (_, number), record in found.items() if number > 1):
        assert 0.5 < one["errors"][1] / one["expected_weights_error"] < 2


def test_auto_solves_what_was_heard_whole_at_weights_that_are_a_guess(tmp_path: Path) -> None:
    tiny = parse_experiment(
        experiment('name = "gradient-sharing"', num_peers=8, rounds=3).to_toml(),
        overrides=["model.options.hidden=[64]"],
    )
    run = trained(tiny, tmp_path)
    Isolator(tiny, run).step(trained=True)
    model = build_model("mlp", (1, 8, 8), 10, rng=torch.Generator(), options={"hidden": [64]})
    known = Knowledge(model=model, input_shape=(1, 8, 8), batch_size=1)

    later = [one for one in run.observation_records() if one["round"] > 1]
    assert len(later) == 4
    for record in later:
        seen = run.read_observation(record["id"])
        truth = unseal(run, record["round"], record["sender"])
        rngs = [torch.Generator().manual_seed(0) for _ in range(2)]
        linear = LinearInversion()(seen, known, rng=rngs[0])
        auto = Auto()(seen, known, rng=rngs[1], budget=Budget(2.0))

        assert truth is not None
        assert linear.inputs is not None
        assert auto.inputs is not None
        assert float((linear.inputs - truth[0]).abs().max()) < 1e-5
        assert torch.equal(auto.inputs, linear.inputs)


def test_an_observation_of_a_run_that_told_no_error_of_weights_can_be_read(tmp_path: Path) -> None:
    run = trained(experiment('name = "gradient-sharing"'), tmp_path)
    Isolator(experiment('name = "gradient-sharing"'), run).step(trained=True)
    identity = "round-00002-client-1-to-peer-0"
    assert (run.read_observation(identity).expected_weights_error or 0.0) > 1e-3

    path = run.root / "observations" / f"{identity}.json"
    record = read_json(path)
    del record["expected_weights_error"]
    replace_json(path, record)

    assert run.read_observation(identity).expected_weights_error is None


def test_a_gradient_that_is_sent_is_heard_bit_for_bit(tmp_path: Path) -> None:
    tiny = experiment('name = "gradient-sharing"')
    run = trained(tiny, tmp_path)
    Isolator(tiny, run).step(trained=True)

    seen = run.read_observation("round-00002-client-1-to-peer-0")
    sealed = unseal_update(run, 2, "client-1")
    assert sealed is not None
    assert (seen.isolated, seen.expected_error) == ("heard", 0.0)
    assert all(torch.equal(seen.update[name], true) for name, true in sealed[0].items())


@pytest.mark.parametrize("num_peers", [2, 3, 5])
def test_a_ring_link_carries_one_chunk_of_each_neighbour(tmp_path: Path, num_peers: int) -> None:
    tiny = experiment('name = "ring-all-reduce"', num_peers=num_peers)
    run = trained(tiny, tmp_path)
    Isolator(tiny, run).step(trained=True)

    records = run.observation_records()
    neighbours = {1, num_peers - 1}
    assert {one["sender"] for one in records} == {f"client-{peer}" for peer in neighbours}
    whole = num_peers == 2 or num_peers == 3  # three in a ring: the sum of all tells the rest
    for record in records:
        seen = run.read_observation(record["id"])
        size = sum(one.numel() for one in seen.update.values())
        if seen.visible is None:
            assert num_peers == 2
        else:
            told = sum(int(one.sum()) for one in seen.visible.values())
            assert told in (size // num_peers, size // num_peers + 1) or whole


def test_both_neighbours_on_a_ring_tell_all_of_a_gradient(tmp_path: Path) -> None:
    tiny = experiment('name = "ring-all-reduce"', 'threat = "coalition", peers = [0, 2]')
    found = isolated(tiny, tmp_path)

    assert {found[1, number]["kind"] for number in (1, 2)} == {"gradient"}
    assert {found[peer, 1]["kind"] for peer in (3, 4)} == {"chunk"}
    assert max(one["errors"][0] for one in found.values()) < 1e-6
    assert max(one["errors"][1] for one in found.values()) < 1e-6


def test_the_relay_and_taps_on_all_links_tell_everything_and_alike(tmp_path: Path) -> None:
    relay = isolated(experiment('name = "d-psgd"', 'threat = "curious-server"'), tmp_path)
    tap = isolated(experiment('name = "d-psgd"', 'threat = "link-tap"'), tmp_path)

    assert how(relay) == {(peer, number): "exact" for peer in range(5) for number in (1, 2)}
    assert [one["sha256"] for one in relay.values()] == [one["sha256"] for one in tap.values()]


def test_what_is_forgotten_for_want_of_room_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny = experiment('name = "d-psgd"', 'threat = "relay"', rounds=8)
    whole = isolated(tiny, tmp_path)
    monkeypatch.setattr(equations, "WORK", 1)
    monkeypatch.setattr(equations, "HELD", 5 * 41)
    short = isolated(tiny, tmp_path)

    assert how(short) == how(whole)
    assert max(one["errors"][0] for one in short.values()) < 1e-4
    assert all(one["weights"] for one in short.values())


@pytest.mark.parametrize(
    ("protocol", "links"), [("d-psgd", ""), ("gossip", ", links = [[1, 0], [2, 0]]")]
)
def test_a_tap_without_weights_knows_no_start(tmp_path: Path, protocol: str, links: str) -> None:
    tiny = experiment(f'name = "{protocol}"', 'threat = "uplink-tap"' + links, num_peers=3)
    found = isolated(parse_experiment(tiny.to_toml(), overrides=["rounds=3"]), tmp_path)

    assert {one for _, one in found} >= {1, 3}
    assert "exact" not in {record["isolated"] for (_, one), record in found.items() if one == 1}
    assert {record["weights"] for record in found.values()} == {None}


def test_updates_of_the_adversarys_own_and_of_others_than_the_victims_are_left_alone(
    tmp_path: Path,
) -> None:
    found = isolated(
        experiment('name = "d-psgd"', NEIGHBOUR + ", victims = [0, 1], rounds = [1]"), tmp_path
    )

    assert set(found) == {(1, 1)}


def test_encrypted_links_tell_a_tap_sizes_alone(tmp_path: Path) -> None:
    tls = 'defenses = [{ name = "tls" }]'
    found = isolated(experiment('name = "d-psgd"', 'threat = "link-tap"', extra=tls), tmp_path)
    relay = isolated(experiment('name = "d-psgd"', 'threat = "relay"', extra=tls), tmp_path)

    assert {one["kind"] for one in found.values()} == {"sizes-only"}
    assert min(one["num_bytes"] for one in found.values()) > 0
    assert set(how(relay).values()) == {"exact"}


def test_the_truth_changes_no_observation(tmp_path: Path) -> None:
    tiny = experiment('name = "d-psgd"')
    honest = trained(tiny, tmp_path)
    lied = trained(tiny, tmp_path)
    for path in (lied.root / "truth").iterdir():
        replace_tensors(path, {"inputs": torch.zeros(1), "labels": torch.zeros(1)})

    for one in (honest, lied):
        Isolator(tiny, one).step(trained=True)

    assert honest.observation_records()
    assert lied.views_sha256() == honest.views_sha256()


def test_it_is_the_same_whether_rounds_are_followed_or_read_at_the_end(tmp_path: Path) -> None:
    tiny = experiment('name = "d-psgd"', rounds=3)
    whole = trained(tiny, tmp_path)
    Isolator(tiny, whole).step(trained=True)
    lines = (whole.root / "rounds.jsonl").read_text().splitlines(keepends=True)

    before = whole.views_sha256()
    (whole.root / "rounds.jsonl").write_text("")
    follower = Isolator(tiny, whole)
    for line in lines:
        with (whole.root / "rounds.jsonl").open("a") as file:
            file.write(line)
        follower.step()
    follower.step(trained=True)

    assert whole.views_sha256() == before


def sent(run: RunDirectory, server_round: int, peer: int, tiny: Experiment) -> Tensor:
    """Where a peer told others that its model had changed, (D,) bool."""
    mask = torch.zeros(federation_of(tiny).layout.size, dtype=torch.bool)
    for view in views_of(run, server_round):
        for one in view.messages:
            if one.sender == peer and one.parcel is not None:
                mask[one.parcel.tensors["places"]] = True
    return mask


@pytest.mark.parametrize("topology", [RING, COMPLETE])
def test_sparse_changes_tell_what_was_sent_in_the_first_round_or_in_two_in_a_row(
    tmp_path: Path, topology: str
) -> None:
    tiny = experiment('name = "choco"', topology=topology, rounds=3)
    run = trained(tiny, tmp_path)
    Isolator(tiny, run).step(trained=True)

    layout = federation_of(tiny).layout
    for record in run.observation_records():
        seen = run.read_observation(record["id"])
        peer = int(seen.sender.removeprefix("client-"))
        sealed = unseal_update(run, seen.round, seen.sender)
        assert sealed is not None
        assert seen.visible is not None
        visible = layout.vector(seen.visible)
        last = sent(run, seen.round, peer, tiny)
        before = sent(run, seen.round - 1, peer, tiny) if seen.round > 1 else last
        assert torch.equal(visible, last & before)
        error = (layout.vector(seen.update) - layout.vector(sealed[0]))[visible]
        assert float(error.norm() / layout.vector(sealed[0])[visible].norm()) < 1e-5
    rounds = {one["round"] for one in run.observation_records()}
    assert rounds == ({1} if topology == RING else {1, 2, 3})


def test_gossip_tells_a_neighbour_its_first_round_and_the_relay_every_round(tmp_path: Path) -> None:
    push = 'name = "gossip"'
    neighbour = isolated(experiment(push, topology=COMPLETE, num_peers=3), tmp_path)
    relay = isolated(experiment(push, 'threat = "relay"', COMPLETE, num_peers=3), tmp_path)

    later = {update: told for update, told in neighbour.items() if update[1] > 1}
    assert set(how(later).values()) <= {"estimated"}
    neighbour = {update: told for update, told in neighbour.items() if update[1] == 1}
    assert neighbour
    assert how(relay) == {(peer, number): "exact" for peer in range(3) for number in (1, 2)}
    for one in (*neighbour.values(), *relay.values()):
        assert one["errors"][0] < 1e-4


def crashed(tiny: Experiment, folder: Path, *places: tuple[int, int, int]) -> list[Record]:
    """Records of what is called exact in a run with crashes, with errors."""
    run = RunDirectory.create(folder, "tiny")
    train(tiny, run, Crashing(InProcessGrid(tiny, run, app), *places))
    Isolator(tiny, run).step(trained=True)
    records = []
    for one in run.observation_records():
        scored = {"observation": one["id"], "round": one["round"], "victim": one["sender"]}
        records.append(one | {"errors": isolation_errors(run, scored)})
    return [one for one in records if one["isolated"] == "exact"]


@pytest.mark.parametrize("protocol", ['name = "d-psgd"', 'name = "push-sum"'])
def test_from_a_silent_neighbour_it_follows_how_the_others_average(
    tmp_path: Path, protocol: str
) -> None:
    tiny = experiment(protocol, topology=COMPLETE, num_peers=4, rounds=4)
    exact = crashed(tiny, tmp_path, (2, 0, 2))

    assert len(exact) == 4 * 3 - 1
    assert max(one["errors"][0] for one in exact) < 1e-4


@pytest.mark.parametrize("adversary", [NEIGHBOUR, 'threat = "link-tap"', 'threat = "relay"'])
@pytest.mark.parametrize("topology", [COMPLETE, RING])
def test_whom_nobody_gives_shares_missed_the_end_of_the_round_before(
    tmp_path: Path, adversary: str, topology: str
) -> None:
    tiny = experiment('name = "push-sum"', adversary, topology, num_peers=4, rounds=6)
    exact = crashed(tiny, tmp_path, (2, 1, 2))

    covered = topology == COMPLETE or adversary != NEIGHBOUR
    assert {one["round"] for one in exact} >= ({1, 2, 5, 6} if covered else {1})
    assert max(one["errors"][0] for one in exact) < 1e-4


@pytest.mark.parametrize("hop", [0, 1])
def test_to_a_neighbour_that_was_silent_itself_nobody_speaks_and_nobody_has_failed(
    tmp_path: Path, hop: int
) -> None:
    tiny = experiment('name = "push-sum"', topology=COMPLETE, num_peers=4, rounds=5)
    exact = crashed(tiny, tmp_path, (2, hop, 0))

    # those of round 2 come late; of round 3 it hears nothing, and of round 4 not where it began
    assert {one["round"] for one in exact} == {1, 2, 5}
    assert max(one["errors"][0] for one in exact) < 1e-4


@pytest.mark.parametrize(
    ("adversary", "crashes", "untold"),
    [
        (NEIGHBOUR, [(2, 1, 0)], 6),  # what it did not hear comes late
        (NEIGHBOUR, [(2, 0, 0)], 6),
        (NEIGHBOUR, [(2, 0, 2), (3, 0, 1)], 3),  # what peer 2 is told late is of peer 1 as well
        ('threat = "relay"', [(2, 1, 2)], 0),
    ],
)
def test_what_sparse_changes_tell_is_right_where_they_come_late(
    tmp_path: Path, adversary: str, crashes: list[tuple[int, int, int]], untold: int
) -> None:
    whole = 'name = "choco", options = { share = 1.0 }'
    tiny = experiment(whole, adversary, COMPLETE, num_peers=4, rounds=4)
    victims = 4 if "relay" in adversary else 3
    exact = crashed(tiny, tmp_path, *crashes)

    assert max(one["errors"][0] for one in exact) < 1e-5
    assert max(one["errors"][1] for one in exact) < 1e-6
    assert len(exact) == 4 * victims - untold


def test_whoever_meets_by_lot_and_starts_from_weights_of_its_own_hides_its_first_step(
    tmp_path: Path,
) -> None:
    tiny = parse_experiment(  # the start that peer 0 knows is its own
        experiment('name = "gossip"', num_peers=3).to_toml(), overrides=["protocol.start='own'"]
    )

    assert "exact" not in how(isolated(tiny, tmp_path)).values()


def test_the_relay_knows_who_did_not_listen(tmp_path: Path) -> None:
    tiny = experiment('name = "d-psgd"', 'threat = "relay"', rounds=4)
    exact = crashed(tiny, tmp_path, (2, 1, 2), (3, 0, 4))

    assert len(exact) == 4 * 5 - 1
    assert max(one["errors"][0] for one in exact) < 1e-4


def test_an_update_that_a_neighbour_takes_for_exact_after_an_unseen_failure_counts_as_mistaken(
    tmp_path: Path,
) -> None:
    covered = 'threat = "curious-neighbour", peers = [0]'
    tiny = experiment('name = "d-psgd"', covered, topology=COMPLETE, num_peers=4, rounds=4)
    exact = crashed(tiny, tmp_path, (2, 1, 2))  # it spoke, and did not listen

    wrong = [one for one in exact if is_mistaken(one, {"update_error": one["errors"][0]})]

    assert [(one["sender"], one["round"]) for one in wrong] == [("client-2", 3)]
    assert all(one["errors"][0] < 1e-4 for one in exact if one not in wrong)


def test_a_ring_that_lost_a_member_tells_as_much_as_the_ring_that_is_left(tmp_path: Path) -> None:
    tiny = experiment('name = "ring-all-reduce"', 'threat = "coalition", peers = [0, 2]', rounds=3)
    exact = crashed(tiny, tmp_path, (2, 4, 3))

    of_one = {one["round"]: one for one in exact if one["sender"] == "client-1"}
    assert {number: one["kind"] for number, one in of_one.items()} == dict.fromkeys(
        (1, 2, 3), "gradient"
    )
    assert max(one["errors"][0] for one in exact) < 1e-5
    assert max(one["errors"][1] for one in exact) < 1e-5


@pytest.mark.slow
def test_a_neighbour_recovers_images_in_the_run_and_again_after_it(tmp_path: Path) -> None:
    extra = f'attacks = [{{ name = "closed-form" }}]\noutput = {{ directory = "{tmp_path}" }}'
    tiny = experiment('name = "d-psgd"', extra=extra)
    done = run(tiny)

    first = [one for one in done.scores if one["round"] == 1]
    assert [one["victim"] for one in first] == ["client-1", "client-4"]
    assert all(one["success_rate"] == 1.0 for one in first)
    assert all(image["psnr_db"] > 80 for one in first for image in one["images"])  # dB
    assert all(one["update_error"] < 1e-5 for one in first)
    seen = RunDirectory(done.directory).views_sha256()

    again = attack_again(done.directory, again=True)

    assert RunDirectory(again.directory).views_sha256() == seen
    pairs = zip(again.scores, done.scores, strict=True)
    assert all(new["images"] == old["images"] for new, old in pairs)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_resumed_run_hears_and_tells_the_same(tmp_path: Path) -> None:
    tiny = experiment('name = "d-psgd"', rounds=3, extra=f'output = {{ directory = "{tmp_path}" }}')
    whole = RunDirectory(run(tiny).directory)
    half = RunDirectory(run(tiny).directory)
    cut = trained(
        parse_experiment(tiny.to_toml(), overrides=["rounds=2"]), tmp_path
    )  # the state after two rounds of three
    for part in ("memory", "checkpoint.safetensors", "rounds.jsonl", "summary.json"):
        _replace(cut.root / part, half.root / part)
    for path in half.views.glob("round-00003-*"):
        path.write_bytes(b"half of it")
    for path in (half.root / "observations").glob("round-00003-*"):
        path.unlink()

    resume(half.root)

    assert half.views_sha256() == whole.views_sha256()
    assert files(half.views) == files(whole.views)


def _replace(source: Path, target: Path) -> None:
    if target.is_dir():
        shutil.rmtree(target)
    else:
        target.unlink(missing_ok=True)
    if source.is_dir():
        shutil.copytree(source, target)
    elif source.exists():
        shutil.copy(source, target)


def test_no_model_is_built_beside_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch draws initial weights from one generator for all threads: two would mix them up."""
    tiny = experiment('name = "d-psgd"')
    run = trained(tiny, tmp_path)
    follower = Isolator(tiny, run)

    def forbidden(*_: object) -> None:
        raise AssertionError("a model was built")

    monkeypatch.setattr("fedsim.tasks.build_model", forbidden)
    follower.step(trained=True)

    assert run.observation_records()
