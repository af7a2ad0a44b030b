from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.eluding import Eluding
from attacks.inner import inner_attack
from attacks.linear import LinearInversion
from attacks.observation import (
    ActiveAttack,
    AttackFailed,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
)
from attacks.threats import Capability
from tests.attacks.overhearing import gradient_of_batch

SHAPE = (1, 6, 6)
CLASSES = 4
CLIENTS = 5


def network(kind: str) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {
            "relu": lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, CLASSES)
            ),
            "tanh": lambda: nn.Sequential(
                nn.Flatten(), nn.Linear(36, 20), nn.Tanh(), nn.Linear(20, CLASSES)
            ),
            "convolutions": lambda: nn.Sequential(
                nn.Conv2d(1, 4, 3, padding=1),
                nn.Sigmoid(),
                nn.Conv2d(4, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.ReLU(),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(36, CLASSES),
            ),
        }[kind]()


def aggregate(
    attack: Eluding, model: nn.Module, batches: list[tuple[Tensor, Tensor]], *, sly: bool = True
) -> tuple[Observation, Knowledge]:
    """What the server hears when client 0 is the target, all clients having as many examples."""
    size = len(batches[0][0])
    known = Knowledge(
        model=model,
        input_shape=SHAPE,
        batch_size=size * len(batches),
        recipe=LocalRecipe(batch_size=size),
    )
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    updates: list[Mapping[str, Tensor]] = []
    for client, (inputs, labels) in enumerate(batches):
        sent = weights
        if sly:
            sent = attack.tamper(
                weights,
                known,
                receiver=f"client-{client}",
                target="client-0",
                earlier=[],
                rng=torch.Generator(),
            )
        model.load_state_dict({**model.state_dict(), **sent})
        updates.append(gradient_of_batch(model, inputs, labels))
    mean = {name: torch.stack([u[name] for u in updates]).mean(0) for name in weights}
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.AGGREGATE,
        update=mean,
        weights=weights,
    )
    return seen, known


def batches(size: int, rng: torch.Generator) -> list[tuple[Tensor, Tensor]]:
    return [
        (
            torch.rand(size, *SHAPE, generator=rng),
            torch.randint(CLASSES, (size,), generator=rng),
        )
        for _ in range(CLIENTS)
    ]


@pytest.mark.parametrize("kind", ["relu", "tanh", "convolutions"])
def test_the_mean_is_the_targets_gradient_times_its_share(kind: str, rng: torch.Generator) -> None:
    model = network(kind)
    mine = batches(3, rng)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    seen, _ = aggregate(Eluding(), model, mine)
    model.load_state_dict({**model.state_dict(), **before})
    alone = gradient_of_batch(model, *mine[0])

    written = {"relu": 1, "tanh": 2, "convolutions": 1}[kind]  # of the classifier, the last two
    for name in list(alone)[:-written]:
        torch.testing.assert_close(CLIENTS * seen.update[name], alone[name])


@pytest.mark.parametrize("kind", ["relu", "tanh"])
def test_one_image_of_the_target_is_read_off_the_mean(kind: str, rng: torch.Generator) -> None:
    mine = batches(1, rng)
    attack = Eluding(then="linear")
    seen, known = aggregate(attack, network(kind), mine)

    found = attack(seen, known, rng=rng)

    assert found.inputs is not None
    torch.testing.assert_close(found.inputs, mine[0][0], atol=1e-4, rtol=0)
    assert found.notes["share"] == pytest.approx(1 / CLIENTS)
    if kind == "relu":
        assert found.labels is not None
        assert found.labels.tolist() == mine[0][1].tolist()


def test_without_silence_the_mean_mixes_everybody(rng: torch.Generator) -> None:
    """The key idea: the others must be sent weights that have no gradient."""
    mine = batches(1, rng)
    attack = Eluding(then="linear")
    seen, known = aggregate(attack, network("relu"), mine, sly=False)

    with pytest.raises(AttackFailed, match="mixture of several"):
        attack(seen, known, rng=rng)


def test_the_bias_gradient_that_others_write_to_is_worked_out_for_one_example(
    rng: torch.Generator,
) -> None:
    model = network("relu").double()
    mine = [(inputs.double(), labels) for inputs, labels in batches(1, rng)]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    attack = Eluding(then="linear")
    seen, known = aggregate(attack, model, mine)
    model.load_state_dict(before)
    heard: list[Observation] = []

    class Listening(LinearInversion):
        def __call__(self, seen, known, **rest):  # type: ignore[no-untyped-def]
            heard.append(seen)
            return super().__call__(seen, known, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("attacks.eluding.inner_attack", lambda name, options: Listening())
        attack(seen, known, rng=rng)

    expected = gradient_of_batch(model, *mine[0])["3.bias"]
    torch.testing.assert_close(heard[0].update["3.bias"], expected)


def test_what_cannot_be_silenced_as_asked_is_refused() -> None:
    def known(model: nn.Module, recipe: LocalRecipe | None) -> Knowledge:
        return Knowledge(model=model, input_shape=SHAPE, batch_size=5, recipe=recipe)

    one = LocalRecipe(batch_size=1)
    with pytest.raises(AttackFailed, match="zero-classifier"):
        Eluding(silence="dead-activation").check(known(network("tanh"), one))
    with pytest.raises(AttackFailed, match="number of examples"):
        Eluding(then="linear").check(known(network("relu"), None))
    with pytest.raises(AttackFailed, match="no linear layer gives the logits"):
        Eluding().check(known(nn.Sequential(nn.Flatten(), nn.Tanh()), one))
    Eluding(then="linear", examples=1).check(known(network("relu"), None))


def test_the_attack_needs_what_the_one_after_it_needs_and_knows_its_name() -> None:
    assert isinstance(Eluding(), ActiveAttack)
    assert inner_attack("dlg", {}).needs < Eluding(then="dlg").needs
    assert Capability.LOCAL_RECIPE not in Eluding(then="dlg", examples=1).needs
    with pytest.raises(ValueError, match="unknown attack 'dgl'"):
        Eluding(then="dgl")
    with pytest.raises(ValueError, match="does not take these options"):
        Eluding(then="linear", options={"steps": 3})
    with pytest.raises(ValueError, match="examples"):
        Eluding(examples=0)
    with pytest.raises(ValueError, match="oracle"):
        Eluding(then="inverting-gradients", options={"labels": "oracle"})


def test_a_wrong_number_of_examples_of_the_target_is_noticed(rng: torch.Generator) -> None:
    attack = Eluding(then="linear")
    seen, known = aggregate(attack, network("relu"), batches(1, rng))

    with pytest.raises(AttackFailed, match="all clients together have 5"):
        Eluding(then="linear", examples=6)(seen, known, rng=rng)
    several, about = aggregate(attack, network("relu"), batches(3, rng))
    with pytest.raises(AttackFailed, match="mixture of several"):
        Eluding(then="linear", examples=1)(several, about, rng=rng)
    loud = replace(seen, update={name: 4 * t for name, t in seen.update.items()})
    with pytest.raises(AttackFailed, match="more examples than said"):
        attack(loud, known, rng=rng)


def test_a_server_that_hears_each_client_is_told_to_do_without(rng: torch.Generator) -> None:
    attack = Eluding(then="linear")
    seen, known = aggregate(attack, network("relu"), batches(1, rng))

    with pytest.raises(AttackFailed, match=r"nobody to silence.*run 'linear'"):
        attack.check(replace(known, batch_size=1))
    with pytest.raises(AttackFailed, match="not a mean over clients"):
        attack(replace(seen, kind=Kind.GRADIENT), known, rng=rng)


def test_silence_is_one_of_its_words() -> None:
    with pytest.raises(ValueError, match=r"silence must be one of auto, .*got 'loud'"):
        Eluding(silence="loud")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="examples must be at least 1, got nan"):
        Eluding(examples=float("nan"))  # type: ignore[arg-type]
