"""What secure aggregation refuses, and how an adversary who knows it reads what it heard."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks.defense import Untold, noise_deviation
from attacks.observation import AttackFailed, Kind, Knowledge, LocalRecipe, Observation
from clients.defenses.secure_aggregation import SecureAggregation
from fedsim.config import Experiment, parse_experiment
from fedsim.defenses import Place, build_chain
from fedsim.errors import ConfigError
from fedsim.secure_sum.field import Contribution, Layout, decode, encode
from fedsim.stages.prepare import check

ASKED = LocalRecipe(batch_size=4)


def experiment(options: str = "", more: str = "", after: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 1
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        training = {{ batch_size = 4 }}
        {more}
        [[defenses]]
        name = "secure-aggregation"
        options = {{ {options} }}
        {after}
        """
    )


REFUSED = {
    "krum": ("", 'server = { strategy = "krum", options = { num_malicious_nodes = 1 } }'),
    "fedmedian": ("", 'server = { strategy = "fedmedian" }'),
    "threshold must be at least 2, got 1: the sum of one client is its update": (
        "threshold = 1",
        "partition = { clients = 2 }",
    ),
    "threshold must be from 2 to 1, the clients of a round, got 1": (
        "",
        "server = { clients_per_round = 1 }",
    ),
    "threshold must be from 2 to 10, the clients of a round, got 11": ("threshold = 11", ""),
    "drop.masked must name clients from 0 to 9, got 10": ("drop = { masked = [10] }", ""),
    "drop_probability.keys must be from 0 to 1, got 1.5": ("drop_probability = { keys = 1.5 }", ""),
    "bits must be from 2 to 32, got 1": ("bits = 1", ""),
    "clip must be greater than 0, got 0.0": ("clip = 0.0", ""),
    "a sum over 40 examples, .* does not fit into 32 bits with 28 .* set bits = 26 or less": (
        "bits = 28",
        "",
    ),
    "set adversary.threat = 'malicious-aggregate-server'": (
        "",
        'adversary = { threat = "malicious-server" }',
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_gives_a_client_away_or_cannot_be_summed_is_refused_before_the_run(
    reason: str,
) -> None:
    options, more = REFUSED[reason]

    with pytest.raises(ConfigError, match=reason):
        check(experiment(options, more))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        ('name = "secure-aggregation"\nlabel = "again"', "once, not twice"),
        ('name = "central-dp"', "'central-dp' treats updates one by one"),
    ],
)
def test_a_second_sum_and_a_server_that_wants_single_updates_are_refused(
    other: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        check(experiment(after=f"[[defenses]]\n{other}"))


OWN = """
from flwr.serverapp.strategy import FedAvg


class Mean(FedAvg):
    takes_mean = {takes}
"""


@pytest.mark.parametrize("takes", [True, False])
def test_a_strategy_of_the_users_own_says_whether_a_mean_is_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, takes: bool
) -> None:
    name = f"own_mean_{takes}".lower()
    (tmp_path / f"{name}.py").write_text(OWN.format(takes=takes))
    monkeypatch.syspath_prepend(str(tmp_path))
    own = experiment("", f'server = {{ strategy = "{name}:Mean" }}')

    if takes:
        check(own)
    else:
        with pytest.raises(ConfigError, match="takes_mean = True"):
            check(own)


def test_as_many_bits_as_are_said_to_fit_do_fit() -> None:
    check(experiment("bits = 26"))
    check(experiment("bits = 28, field_bits = 64"))


def test_it_acts_on_the_wire_and_more_than_two_thirds_must_stay() -> None:
    (defense,) = build_chain(experiment()).values()

    assert isinstance(defense, SecureAggregation)
    assert defense.place is Place.WIRE
    assert [defense.threshold_of(n) for n in (2, 3, 4, 10, 100)] == [2, 3, 3, 7, 67]


# how it is read


def clients_mean(
    defense: SecureAggregation, num_clients: int = 9
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return the mean of what clients computed, and the mean that the server hears."""
    rng = torch.Generator().manual_seed(0)
    quantiser = defense.quantiser
    own = [
        {"w": 0.1 * torch.randn(200, 100, generator=rng, dtype=torch.float64)}
        for _ in range(num_clients)
    ]
    layout = Layout.of(own[0], {})
    total = sum(
        encode(Contribution(one, {}, 4, 0.0), layout, quantiser, quantiser, field_bits=32, rng=rng)
        for one in own
    )
    mean = decode(total, layout, quantiser, quantiser)  # type: ignore[arg-type]
    assert mean is not None
    exact = sum(one["w"] for one in own) / num_clients
    assert isinstance(exact, Tensor)
    return {"w": exact}, {name: tensor.float() for name, tensor in mean.update.items()}


def heard(update: Mapping[str, Tensor], kind: Kind = Kind.AGGREGATE) -> Observation:
    return Observation(
        round=1, sender="all", receiver="server", kind=kind, update=update, num_examples=36
    )


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("bits", [8, 16])
def test_the_noise_of_a_mean_is_that_of_rounding_over_the_clients(rounding: str, bits: int) -> None:
    defense = SecureAggregation(bits=bits, clip=1.0, rounding=rounding)  # type: ignore[arg-type]
    exact, found = clients_mean(defense)

    _, known = defense.read(heard(found), Knowledge(recipe=ASKED))

    assert known.noise is not None
    error = float((found["w"] - exact["w"]).std())
    assert error == pytest.approx(known.noise.deviation["w"], rel=0.05)


def test_a_rounded_change_of_weights_is_noisier_as_a_gradient() -> None:
    update = {"w": torch.ones(3)}
    recipe = LocalRecipe(batch_size=4, learning_rate=0.1)

    noises = [
        SecureAggregation().read(heard(update), Knowledge(recipe=one))[1].noise
        for one in (ASKED, recipe)
    ]

    assert noises[0] is not None
    assert noises[1] is not None
    assert noises[1].deviation["w"] == pytest.approx(10 * noises[0].deviation["w"])


@pytest.mark.parametrize("bits", [10, 14, 20])
def test_the_step_is_read_off_the_grid_of_the_mean(bits: int) -> None:
    defense = SecureAggregation(bits=bits, clip=2.0)
    _, found = clients_mean(defense)
    seen, known = heard(found), Knowledge(recipe=ASKED)

    guessed = SecureAggregation().estimated(seen, known)

    assert guessed.quantiser.step == pytest.approx(defense.quantiser.step, rel=0.01)
    told, untold = (
        one.read(seen, known)[1].noise for one in (defense, Untold(defense=SecureAggregation()))
    )
    assert told is not None
    assert untold is not None
    assert untold.deviation["w"] == pytest.approx(told.deviation["w"], rel=0.01)


def test_nothing_is_read_off_a_masked_update_or_a_message_of_another_kind() -> None:
    seen = heard({"w": torch.zeros(3, dtype=torch.uint32)}, Kind.MASKED_SHARE)
    gradient = heard({"w": torch.zeros(3)}, Kind.GRADIENT)
    known = Knowledge(model=nn.Linear(1, 1))

    with pytest.raises(AttackFailed, match=r"attack the mean of the round"):
        SecureAggregation().read(seen, known)
    assert SecureAggregation().read(gradient, known) == (gradient, known)
    assert SecureAggregation().estimated(seen, known) == SecureAggregation()
    assert noise_deviation(gradient, "w") is None
