"""Experiments: what is accepted, and what is said about the rest."""

import json
from pathlib import Path

import pytest

from attacks.threats import Capability
from fedsim.config import Experiment, parse_experiment, read_experiment, schema, shipped
from fedsim.errors import ConfigError

MINIMAL = 'name = "tiny"\n'


def refusal(text: str, overrides: tuple[str, ...] = ()) -> str:
    """Return what is said about an experiment that is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_experiment(MINIMAL + text, where="x.toml", overrides=overrides)
    return str(caught.value)


def test_an_experiment_needs_a_name_and_nothing_else() -> None:
    experiment = parse_experiment(MINIMAL)

    assert experiment == Experiment(name="tiny")
    assert (experiment.rounds, experiment.partition.clients) == (10, 10)


def test_what_is_written_back_reads_as_the_same_experiment() -> None:
    experiment = parse_experiment(
        MINIMAL
        + """
        seed = 7
        [data]
        options = { limit = 3 }
        [adversary]
        rounds = [1, 2]
        grants = ["labels"]
        [[attacks]]
        name = "dlg"
        options = { steps = 2, momentum = 0.5 }
        """
    )

    assert parse_experiment(experiment.to_toml()) == experiment
    assert experiment.adversary.grants == [Capability.LABELS]


def test_every_shipped_experiment_is_sound_and_called_as_its_file() -> None:
    for name in shipped():
        assert read_experiment(name).name == name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rounds = 0", "rounds must be at least 1, got 0"),
        ("rounds = 1.5", "rounds must be a whole number, got 1.5"),
        ('seed = "a"', "seed must be a whole number, got 'a'"),
        ('data = "digits"', "data must be a table, got 'digits'"),
        ("attacks = {}", "attacks must be a list, got {}"),
        ("[[attacks]]", "attacks.0.name is required"),
        ("[training]\nlearning_rate = 0", "training.learning_rate must be greater than 0.0, got 0"),
        (
            "[training]\nlearning_rate = nan",
            "training.learning_rate must be a finite number, got nan",
        ),
        ("[training]\nmomentum = 1.0", "training.momentum must be less than 1.0, got 1.0"),
        (
            '[training]\nreturns = "gradients"',
            "training.returns must be one of 'gradient', 'weights', 'delta', got 'gradients'; "
            "did you mean 'gradient'?",
        ),
        (
            '[training]\nreturns = "weights"',
            "training.returns must be 'gradient' for algorithm 'fedsgd', got 'weights'",
        ),
        (
            '[training]\nalgorithm = "fedavg"\nreturns = "gradient"',
            "training.returns must be 'weights' or 'delta' for algorithm 'fedavg', got 'gradient'",
        ),
        (
            "[training]\nbatchsize = 2",
            "unknown key 'batchsize' in [training]; did you mean 'batch_size'?",
        ),
        ("roudns = 2", "unknown key 'roudns'; did you mean 'rounds'?"),
        (
            '[[attacks]]\nname = "dlg"\noption = {}',
            "unknown key 'option' in [attacks.0]; did you mean 'options'?",
        ),
        (
            '[output]\nwriters = ["tensorbord"]',
            "output.writers.0 must be one of 'tensorboard', 'mlflow', got 'tensorbord'; "
            "did you mean 'tensorboard'?",
        ),
        (
            "[server]\nclients_per_round = 20",
            "server.clients_per_round must be at most partition.clients (10), got 20",
        ),
        (
            "[adversary]\nvictims = [10]",
            "adversary.victims must be client numbers from 0 to 9, got 10",
        ),
        ("[adversary]\nrounds = [11]", "adversary.rounds must be rounds from 1 to 10, got 11"),
        (
            '[[attacks]]\nname = "dlg"\n[[attacks]]\nname = "dlg"',
            "attacks: two are called 'dlg'; give each a label of its own",
        ),
        (
            '[[attacks]]\nname = "dlg"\nlabel = "a/b"',
            "attacks.0.label must fit the pattern ^[\\w.+-]*$, got 'a/b'",
        ),
    ],
)
def test_a_refusal_says_where_what_was_expected_and_what_came(text: str, said: str) -> None:
    assert refusal(text) == f"x.toml: {said}"


@pytest.mark.parametrize("value", ['"al"', '["a"]', "[0]", "3", "{ a = 1 }"])
def test_a_value_that_fits_no_branch_of_a_union_gets_one_message(value: str) -> None:
    said = refusal(f"[adversary]\nrounds = {value}")

    start = "x.toml: adversary.rounds must be 'all' or a list of whole numbers from 1, got "
    assert said.startswith(start)
    assert "\n" not in said


def test_every_mistake_is_named_at_once() -> None:
    said = refusal("rounds = 0\n[training]\nbatch_size = 0")

    assert said.splitlines() == [
        "x.toml: rounds must be at least 1, got 0",
        "x.toml: training.batch_size must be at least 1, got 0",
    ]


def test_text_that_is_not_toml_is_refused_with_its_place() -> None:
    assert refusal("rounds = = 2").startswith("x.toml: not valid TOML: ")


def test_overrides_reach_sections_and_items_of_lists_by_label_name_or_number() -> None:
    text = MINIMAL + '[[attacks]]\nname = "dlg"\n[[attacks]]\nname = "dlg"\nlabel = "slow"\n'

    experiment = parse_experiment(
        text,
        overrides=[
            "training.batch_size=4",
            "attacks.dlg.time_budget_s=1",
            "attacks.slow.options.steps=5",
            "attacks.1.time_budget_s=2",
            "adversary.rounds=[1]",
            "description=plain words",
        ],
    )

    assert experiment.training.batch_size == 4
    assert [attack.time_budget_s for attack in experiment.attacks] == [1, 2]
    assert experiment.attacks[1].options == {"steps": 5}
    assert experiment.adversary.rounds == [1]
    assert experiment.description == "plain words"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds", "--set expects key=value, got 'rounds'"),
        ("=3", "--set expects key=value, got '=3'"),
        ("name.a=3", "--set name.a=3: 'name' is not a section"),
        ("name.a.b=3", "--set name.a.b=3: 'a' is below a plain value"),
        ("attacks.dgl.name=3", "--set attacks.dgl.name=3: no item 'dgl'; did you mean 'dlg'?"),
        ("attacks.0=3", "--set attacks.0=3: 'attacks' is a list; name one of its items"),
        ("adversary.rounds.0.a=3", "--set adversary.rounds.0.a=3: 'adversary.rounds.0' is not"),
    ],
)
def test_an_override_that_fits_nowhere_is_refused(override: str, said: str) -> None:
    text = '[adversary]\nrounds = [1]\n[[attacks]]\nname = "dlg"'

    assert refusal(text, (override,)).startswith(said)


def test_an_experiment_that_cannot_be_found_or_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")

    with pytest.raises(ConfigError, match=r"no experiment file .nowhere/x\.toml."):
        read_experiment("nowhere/x.toml")
    with pytest.raises(ConfigError, match="no experiment called 'digits-curious-srver'; did you"):
        read_experiment("digits-curious-srver")
    with pytest.raises(ConfigError, match="a sweep of several experiments; fedsim sweep cent"):
        read_experiment("centralised-vs-decentralised")
    with pytest.raises(ConfigError, match=r"binary.toml: cannot be read: 'utf-8' codec"):
        read_experiment(binary)

    def forbidden(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", forbidden)
    with pytest.raises(ConfigError, match=r"binary.toml: cannot be read: .*Permission denied"):
        read_experiment(binary)


def test_the_number_of_local_steps_counts_a_smaller_last_batch() -> None:
    training = parse_experiment(
        MINIMAL + '[training]\nalgorithm = "fedavg"\nbatch_size = 4\nlocal_epochs = 2'
    ).training

    assert training.num_local_steps(9) == 6
    assert training.model_copy(update={"max_local_steps": 5}).num_local_steps(9) == 5
    assert parse_experiment(MINIMAL).training.num_local_steps(9) == 1


def test_an_adversary_hears_its_rounds_and_victims_alone() -> None:
    adversary = parse_experiment(MINIMAL + "[adversary]\nrounds = [2]\nvictims = [0]").adversary

    assert [adversary.hears(r, c) for r in (1, 2) for c in (0, 1)] == [False, False, True, False]
    assert parse_experiment(MINIMAL).adversary.hears(9, 9)


def test_the_schema_explains_every_key_and_is_json() -> None:
    definitions = json.loads(json.dumps(dict(schema())))["$defs"]

    for section in definitions.values():
        for name, key in section.get("properties", {}).items():
            assert key.get("description"), name
    assert definitions["AdversaryConfig"]["properties"]["rounds"]["anyOf"]


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
@pytest.mark.parametrize(
    ("text", "place"),
    [
        (
            "[[attacks]]\nname = 'dlg'\noptions = { tv_weight = VALUE }",
            "attacks.0.options.tv_weight",
        ),
        (
            "[[attacks]]\nname = 'fishing'\noptions = { options = { w = [1.0, VALUE] } }",
            "attacks.0.options.options.w[1]",
        ),
        ("[model]\noptions = { width = VALUE }", "model.options.width"),
        (
            "[clients]\nchecks = ['weight-jump']\noptions = { weight-jump = { factor = VALUE } }",
            "clients.options.weight-jump.factor",
        ),
    ],
)
def test_options_are_finite_numbers_as_records_have_no_others(
    text: str, place: str, value: str
) -> None:
    said = refusal(text.replace("VALUE", value))

    assert said == f"x.toml: {place} must be a finite number, got {value}"


def test_an_option_that_is_not_finite_is_refused_on_the_command_line_too() -> None:
    attack = "[[attacks]]\nname = 'dlg'\n"

    assert refusal(attack, ("attacks.dlg.options.step_size=nan",)) == (
        "x.toml: attacks.0.options.step_size must be a finite number, got nan"
    )
