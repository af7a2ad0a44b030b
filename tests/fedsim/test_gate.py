"""The gate fails what leaks, passes what these attacks do not break, and says on what grounds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import pytest

from fedsim import gate as gating
from fedsim.config import AttackConfig, Experiment, parse_experiment
from fedsim.errors import ConfigError, RunFailed
from fedsim.files import replace_json
from fedsim.gate import Claim, Tally, _count, attack_of, claim_of, gate, junit, lines_of
from fedsim.schemas.gate import GateRecord
from fedsim.sweep.statistics import upper_bound
from tests.fedsim.told import table_run

LINEAR = AttackConfig(name="linear", time_budget_s=5)


def experiment(folder: Path, **more: Any) -> Experiment:
    values = {
        "name": "gated",
        "rounds": 1,
        "model": {"name": "mlp", "options": {"hidden": [16]}},
        "partition": {"clients": 4},
        "output": {"directory": str(folder)},
    }
    return Experiment.model_validate(values | more)


def noise(scale: float) -> dict[str, Any]:
    return {"defenses": [{"name": "gaussian-noise", "options": {"scale": scale}}]}


# the claim


def test_the_usual_claim_takes_fifty_nine_updates_and_allows_none_to_be_broken() -> None:
    claim = Claim(threshold_db=15.0)

    assert (claim.planned, claim.allowed) == (59, 0)


def test_with_more_updates_some_may_be_broken_and_the_bound_still_holds() -> None:
    claim = Claim(threshold_db=15.0, victims=150)

    assert claim.allowed == 2
    assert upper_bound(claim.allowed, 150, 0.95) <= 0.05 < upper_bound(claim.allowed + 1, 150, 0.95)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"tolerated": 0.0}, "no number of attacks proves that none succeeds"),
        ({"confidence": 1.0}, "confidence must be above 0 and below 1"),
        ({"victims": 58}, "victims must be at least 59"),
    ],
)
def test_a_claim_that_cannot_be_proved_is_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Claim(threshold_db=15.0, **wrong)


# the gate


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "passes"), [(1e6, False), (1.0, True)])
def test_dp_sgd_fails_with_a_large_epsilon_and_passes_with_a_small_one(
    tmp_path: Path, epsilon: float, passes: bool
) -> None:
    private = {"name": "dp-sgd", "options": {"epsilon": epsilon, "sampling": "fixed"}}
    claim = Claim(threshold_db=15.0, tolerated=0.4, confidence=0.9)

    found = gate(experiment(tmp_path, defenses=[private]), claim, attack=LINEAR, workers=1)

    assert found.passed is passes


def test_an_undefended_experiment_fails_after_one_run(tmp_path: Path) -> None:
    found = gate(experiment(tmp_path), Claim(threshold_db=15.0), attack=LINEAR, workers=1)

    assert not found.passed
    assert len(found.runs) == 1  # 59 were planned
    assert found.broken == found.victims == 4
    assert found.share.low is not None
    assert found.share.low > 0.3
    assert found.psnr_db is not None
    assert found.psnr_db.median > 60  # dB: the first layer gives one image away exactly
    assert found.verdict.startswith("failed: 4 of 4 updates gave an image away")


@pytest.fixture(scope="module")
def passed(tmp_path_factory: pytest.TempPathFactory) -> GateRecord:
    """What came of an experiment whose updates drown in noise."""
    claim = Claim(threshold_db=15.0, tolerated=0.4, confidence=0.9)
    folder = tmp_path_factory.mktemp("runs")
    return gate(experiment(folder, **noise(10.0)), claim, attack=LINEAR, workers=1)


def test_updates_that_drown_in_noise_pass(passed: GateRecord) -> None:
    assert passed.passed
    assert (passed.victims, passed.broken, passed.allowed) == (5, 0, 0)
    assert passed.bound == pytest.approx(1 - 0.1 ** (1 / 5))
    assert passed.bound <= passed.tolerated
    assert passed.defense == "gaussian-noise"
    assert passed.baseline_psnr_db is not None


def test_victims_come_under_fresh_seeds_until_there_are_enough(passed: GateRecord) -> None:
    assert passed.seeds == [0, 1]  # four clients each
    assert len(set(passed.runs)) == 2
    assert passed.num_images == 5  # those beyond the plan are not looked at


def test_the_words_say_what_was_measured_and_never_that_anything_is_safe(
    passed: GateRecord,
) -> None:
    text = " ".join(lines_of(passed))

    assert "0 of 5 updates gave an image away to 15 dB to linear within 5.0" in text
    assert "guessing the data mean gives" in text
    assert "safe" not in text


def test_the_junit_file_holds_one_test_that_passes_or_fails(passed: GateRecord) -> None:
    good = ElementTree.fromstring(junit(passed))  # noqa: S314 - our own
    lost = passed.model_copy(update={"passed": False, "verdict": "failed: <all> & more"})
    bad = ElementTree.fromstring(junit(lost))  # noqa: S314

    assert [suite.get("failures") for suite in (good[0], bad[0])] == ["0", "1"]
    assert good.find(".//failure") is None
    failure = bad.find(".//failure")
    assert failure is not None
    assert failure.get("message") == "failed: <all> & more"


def test_attacks_that_come_to_no_guess_are_no_trials(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Run:
        directory = tmp_path
        scores = [{"status": "failed", "images": [], "batch_size": 1}] * 4

    monkeypatch.setattr("fedsim.driver.run", lambda _: Run())
    claim = Claim(threshold_db=15.0, tolerated=0.4, confidence=0.9)

    with pytest.raises(
        RunFailed, match="8 attacks came to no guess, or a part of them crashed, which says"
    ):
        gate(experiment(tmp_path), claim, attack=LINEAR, workers=1)


@pytest.mark.parametrize(
    ("psnr_db", "recovered", "crashed", "counts"),
    [
        (9.0, False, False, True),
        (None, False, False, False),  # a guess of NaN
        (9.0, False, True, False),
        (20.0, True, True, True),
    ],
)
def test_a_guess_is_a_trial_if_it_shows_something(
    psnr_db: float | None, recovered: bool, crashed: bool, counts: bool, tmp_path: Path
) -> None:
    image = {"psnr_db": psnr_db, "recovered": recovered}
    score = {"observation": "one", "status": "done", "images": [image], "batch_size": 1}
    notes = {"crashed": "idlg"} if crashed else {}
    note = {"observation": "one", "attack": "gate", "notes": notes}
    replace_json(tmp_path / "reconstructions" / "one--gate.json", note)
    run = SimpleNamespace(directory=tmp_path, scores=[score])
    tally = Tally()

    _count(tally, run, 0, Claim(threshold_db=15.0))  # type: ignore[arg-type]

    assert (len(tally.scores), tally.failed) == ((1, 0) if counts else (0, 1))


def test_an_experiment_in_which_nobody_is_heard_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Run:
        directory = tmp_path
        scores: list[Any] = []  # noqa: RUF012

    monkeypatch.setattr("fedsim.driver.run", lambda _: Run())

    with pytest.raises(RunFailed, match="its adversary heard none"):
        gate(experiment(tmp_path), Claim(threshold_db=15.0), attack=LINEAR, workers=1)


def test_each_run_attacks_different_clients_and_no_more_than_its_part(tmp_path: Path) -> None:
    large = experiment(tmp_path, partition={"clients": 40}, rounds=2)

    runs = gating._fresh(large, Claim(threshold_db=15.0), LINEAR, 3)
    first, second = next(runs), next(runs)

    assert first.seed + 1 == second.seed
    for one in (first, second):
        assert len(set(one.adversary.victims)) == gating.PER_RUN // 2  # heard in two rounds
        assert "defense" in one.adversary.grants
        assert [attack.name for attack in one.attacks] == ["linear"]
        assert one.score.success_threshold_db == 15.0
        assert one.engine.attack_workers == 3
    assert first.adversary.victims != second.adversary.victims


def test_the_attack_is_that_of_the_experiment_if_it_names_it() -> None:
    read = parse_experiment(
        'name = "x"\n[[attacks]]\nname = "dlg"\nlabel = "mine"\noptions = { steps = 7 }\n'
        "time_budget_s = 9"
    )

    assert attack_of(read, "mine", None).options == {"steps": 7}
    assert attack_of(read, "dlg", 3.0).time_budget_s == 3.0
    assert attack_of(read, "auto", None) == AttackConfig(name="auto")
    with pytest.raises(ConfigError, match="must be above 0"):
        attack_of(read, "auto", 0.0)


# text and tables


def claim_on(folder: Path, data: str, **given: Any) -> Claim:
    """Return the claim of `fedsim gate` with these options."""
    options = {"max_psnr": None, "max_accuracy": None, "max_success_rate": None}
    more = {"tolerate": 0.05, "confidence": 0.95, "victims": None}
    return claim_of(experiment(folder, data={"name": data}), **(options | more | given))


def test_of_a_table_the_claim_is_about_the_share_of_features(tmp_path: Path) -> None:
    claim = claim_on(tmp_path, "wine", max_accuracy=0.6)

    assert claim.words.replace("\u00a0", " ") == (
        "at most 5 % of updates give a row away to 60 % of features right, with 95 % confidence"
    )


def test_a_success_rate_takes_the_threshold_of_the_experiment(tmp_path: Path) -> None:
    claim = claim_on(tmp_path, "wine", max_success_rate=0.2)

    assert (claim.modality, claim.success_accuracy, claim.tolerated) == ("table", 0.9, 0.2)
    assert claim_on(tmp_path, "digits", max_success_rate=0.2).threshold_db == 30.0


@pytest.mark.parametrize(
    ("data", "given", "said"),
    [
        (
            "wine",
            {"max_psnr": 15.0},
            "--max-psnr is about images, and data 'wine' holds rows; give",
        ),
        ("digits", {"max_accuracy": 0.5}, "data 'digits' holds images; give --max-psnr"),
        ("digits", {}, "either --max-psnr or --max-success-rate"),
        ("wine", {"max_accuracy": 0.5, "max_success_rate": 0.1}, "either --max-accuracy or"),
        ("wine", {"max_accuracy": 50.0}, "must be above 0 and at most 1, got 50"),
    ],
)
def test_a_threshold_that_the_data_do_not_go_with_is_refused(
    data: str, given: dict[str, float], said: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=said):
        claim_on(tmp_path, data, **given)


def test_a_row_that_is_recovered_breaks_the_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = table_run(tmp_path)
    scores = [{**one, "round": 1} for one in made.scores()]
    seen: list[Experiment] = []

    def run(fresh: Experiment) -> Any:
        seen.append(fresh)
        return SimpleNamespace(directory=made.root, scores=scores)

    monkeypatch.setattr("fedsim.driver.run", run)
    table = experiment(tmp_path, data={"name": "wine"}, model={"name": "mlp"})

    found = gate(table, claim_on(tmp_path, "wine", max_accuracy=0.6), attack=LINEAR, workers=1)

    assert seen[0].score.success_accuracy == 0.6
    assert (found.passed, found.broken, found.victims) == (False, 1, 4)
    text = " ".join(lines_of(found)).replace("\u00a0", " ")
    assert "failed: 1 of 4 updates gave a row away to 60 % of features right to linear" in text
    assert "features right median 83.3 %, best 100 %; guessing the data mean gives 25 %" in text
    assert "8 private rows under 1 seed" in text
    assert found.psnr_db is None
