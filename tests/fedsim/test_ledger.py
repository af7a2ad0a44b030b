"""What a run says it costs, round by round, against Opacus' accountant."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import RDPAccountant

from fedsim import driver, truth
from fedsim.config import Experiment, parse_experiment
from fedsim.defenses import build_chain
from fedsim.errors import ConfigError, RunFailed
from fedsim.ledger import _dearest, ledger_of, participations
from fedsim.privacy import Mechanism, epsilon_of, share_of
from fedsim.records import RunDirectory
from fedsim.setup import draw_clients, shares_of, task_of
from fedsim.stages.prepare import check
from server import rounds


def experiment(
    *defenses: str, training: str = "batch_size = 4", adversary: str = "", attack: str = ""
) -> Experiment:
    chain = "".join(f"[[defenses]]\n{defense}\n" for defense in defenses)
    attacks = f"[[attacks]]\n{attack}\n" if attack else ""
    return parse_experiment(
        'name = "tiny"\nrounds = 4\nseed = 3\n[model]\nname = "mlp"\n'
        f"options = {{ hidden = [4] }}\n[partition]\nclients = 3\n[training]\n{training}\n"
        f"[adversary]\n{adversary}\n{chain}{attacks}"
    )


DP_SGD = 'name = "dp-sgd"\noptions = { noise_multiplier = 1.3 }'
LOCAL = 'name = "local-dp"\noptions = { noise_multiplier = 8.0 }'


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sizes(of: Experiment) -> list[int]:
    return [len(share) for share in shares_of(of, task_of(of))]


@pytest.mark.parametrize(
    "training",
    ["batch_size = 4", 'algorithm = "fedavg"\nbatch_size = 4\nmax_local_steps = 3'],
    ids=["fedsgd", "fedavg"],
)
def test_epsilon_of_each_round_is_that_of_opacus_stepped_by_hand(training: str) -> None:
    dp = experiment(DP_SGD, training=training)

    result = driver.run(dp)

    held = min(sizes(dp))  # the smallest share has the highest rate
    accountant, expected = RDPAccountant(), []
    for _ in range(dp.rounds):
        for _ in range(dp.training.num_local_steps(held)):
            accountant.step(noise_multiplier=1.3, sample_rate=4 / held)
        expected.append(accountant.get_epsilon(delta=1e-5))
    recorded = RunDirectory(result.directory).rounds()[1:]
    assert [record["epsilon"] for record in recorded] == pytest.approx(expected, rel=1e-12)
    assert result.summary["epsilon"] == recorded[-1]["epsilon"]
    assert result.summary["delta"] == 1e-5
    assert result.summary["privacy_unit"] == "example"
    page = result.report.read_text()
    assert f"&epsilon; = {expected[-1]:.3g}<small>at &delta; = 1e-05, of each example" in page


def test_a_client_pays_for_the_rounds_that_it_was_asked_in() -> None:
    overrides = ["rounds=9", "server.clients_per_round=1"]
    local = parse_experiment(experiment(LOCAL).to_toml(), overrides=overrides)

    spent = driver.run(local).summary["epsilon"]

    drawn = [draw_clients(local, number)[0] for number in range(1, 10)]
    most = max(drawn.count(client) for client in range(3))
    assert 3 <= most < 9
    once = Mechanism(noise_multiplier=4.0, sample_rate=1.0, num_steps=most)  # 2 C apart
    assert spent == epsilon_of(once, 1e-5)
    assert participations(local, 9) == {client: drawn.count(client) for client in set(drawn)}


@pytest.mark.parametrize("defense", [DP_SGD, LOCAL, 'name = "central-dp"'])
def test_a_run_that_was_cut_off_ends_with_the_same_bits_and_the_same_account(
    defense: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = driver.run(experiment(defense))
    one = rounds._Rounds.one

    def fail_in_round_3(self: rounds._Rounds, number: int, arrays: object) -> object:
        if number == 3:
            raise OSError("no more power")
        return one(self, number, arrays)  # type: ignore[arg-type]

    monkeypatch.setattr(rounds._Rounds, "one", fail_in_round_3)
    with pytest.raises(RunFailed):
        driver.run(experiment(defense))
    monkeypatch.setattr(rounds._Rounds, "one", one)
    resumed = driver.resume(Path("runs/tiny-0002"))

    for key in ("epsilon", "delta", "weights_sha256", "views_sha256"):
        assert resumed.summary[key] == whole.summary[key], key
    kept = [RunDirectory(result.directory).rounds() for result in (whole, resumed)]
    assert [one.get("epsilon") for one in kept[0]] == [one.get("epsilon") for one in kept[1]]


def test_what_is_asked_for_is_spent_over_the_whole_run_and_no_more() -> None:
    local = experiment('name = "local-dp"\noptions = { epsilon = 3.0 }')

    result = driver.run(local)

    recorded = [one["epsilon"] for one in RunDirectory(result.directory).rounds()[1:]]
    assert recorded == sorted(recorded)
    assert recorded[0] < 1.8
    assert 2.96 < recorded[-1] <= 3.0


def test_without_noise_there_is_an_account_and_no_epsilon() -> None:
    bare = driver.run(experiment('name = "dp-sgd"\noptions = { noise_multiplier = 0.0 }'))

    assert bare.summary["epsilon"] is None
    assert bare.summary["delta"] == 1e-5


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.7, 1.0, 2.0]), st.sampled_from([0.1, 0.5, 1.0]), st.integers(0, 9)
        ),
        min_size=1,
        max_size=8,
    )
)
@settings(max_examples=25, deadline=None)
def test_the_dearest_mechanism_is_never_left_out(cases: list[tuple[float, float, int]]) -> None:
    all_of_them = [
        Mechanism(noise_multiplier=noise, sample_rate=rate, num_steps=steps)
        for noise, rate, steps in cases
    ]
    few = _dearest(all_of_them)
    assert max(epsilon_of(one, 1e-5) for one in few) == max(
        epsilon_of(one, 1e-5) for one in all_of_them
    )


def test_an_account_can_be_asked_for_any_round_in_any_order() -> None:
    dp = experiment(DP_SGD)
    ledger = ledger_of(dp, build_chain(dp), sizes(dp))
    assert ledger is not None

    later, earlier = ledger.spent(4).epsilon, ledger.spent(2).epsilon
    assert earlier < later < math.inf
    assert ledger.spent(4).epsilon == later
    assert share_of(dp.training, 20, 4).num_rounds == 4


@pytest.mark.parametrize("defense", [DP_SGD, LOCAL])
def test_private_clients_tell_nothing_of_their_loss(defense: str) -> None:
    result = driver.run(experiment(defense))

    recorded = RunDirectory(result.directory).rounds()[1:]
    assert all(one["train_loss"] is None for one in recorded)
    assert all(one["clients"] == [0, 1, 2] for one in recorded)


def test_batches_are_drawn_and_what_is_announced_does_not_tell_their_size() -> None:
    result = driver.run(experiment(DP_SGD, training="batch_size = 1", attack='name = "label"'))

    run = RunDirectory(result.directory)
    announced = {one["num_examples"] for one in run.observation_records()}
    assert announced == {1}
    sealed = {
        (one["round"], one["sender"]): truth.unseal(run, one["round"], one["sender"])
        for one in run.observation_records()
    }
    used = {where: len(batch[0]) for where, batch in sealed.items() if batch is not None}
    assert len(used) == 12
    assert {0, 1} < set(used.values())  # as Poisson draws are: some are empty, some too large
    status = {(one["round"], one["victim"]): one["status"] for one in run.scores()}
    assert {where for where, what in status.items() if what == "unscored"} == {
        where for where, size in used.items() if size == 0
    }
    assert result.report.is_file()
    assert driver.score_again(result.directory).summary["leakage"] == result.summary["leakage"]


@pytest.mark.slow
def test_an_oracle_tells_the_true_size_of_a_batch() -> None:
    result = driver.run(
        experiment(
            DP_SGD,
            training="batch_size = 1",
            adversary='grants = ["labels"]',
            attack='name = "inverting-gradients"\noptions = { labels = "oracle", steps = 2 }',
        )
    )

    by_size: dict[int, set[str]] = {}
    for score in result.scores:
        by_size.setdefault(score["batch_size"], set()).add(score["status"])
    assert by_size.pop(0) == {"unscored"}
    assert set().union(*by_size.values()) == {"done"}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["mixup", "dp-sgd"], "both compute the gradients of local training"),
        (["dp-sgd", "local-dp"], "both give differential privacy"),
        (["local-dp", "soteria"], "'soteria' looks at the private data after 'local-dp'"),
    ],
)
def test_links_that_undo_each_other_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(experiment(*(f'name = "{name}"' for name in names)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("defense", "least"),
    [
        ('name = "mixup"', 0.8),
        ('name = "dp-sgd"\noptions = { epsilon = 8.0 }', 0.75),
        ('name = "local-dp"\noptions = { noise_multiplier = 0.1 }', 0.8),
        ('name = "central-dp"\noptions = { noise_multiplier = 0.5 }', 0.8),
    ],
    ids=["mixup", "dp-sgd", "local-dp", "central-dp"],
)
def test_training_still_learns_digits(defense: str, least: float) -> None:
    learning = parse_experiment(
        'name = "learn"\nrounds = 60\n[model]\nname = "mlp"\noptions = { hidden = [32] }\n'
        "[partition]\nclients = 5\n[training]\nbatch_size = 32\nlearning_rate = 0.5\n"
        f"[server]\nevaluate_every = 60\n[adversary]\nrounds = [1]\n[[defenses]]\n{defense}\n"
    )

    torch.manual_seed(0)
    accuracy = driver.run(learning).summary["utility"]["accuracy"]

    assert accuracy > least  # without a defense 0.92; chance is 0.1


@pytest.mark.parametrize("defense", [DP_SGD, LOCAL, 'name = "mixup"'])
def test_server_and_link_hear_the_same_defended_update(defense: str) -> None:
    def views(threat: str, *chain: str) -> str:
        heard = experiment(*chain, adversary=f'threat = "{threat}"\nrounds = [1]')
        return str(driver.run(heard).summary["views_sha256"])

    server, link = (views(threat, defense) for threat in ("curious-server", "link-tap"))

    assert server == link
    assert server != views("curious-server")
