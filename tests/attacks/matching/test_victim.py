from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.matching.victim import rebuild
from attacks.observation import AttackFailed, Kind, LocalRecipe

from .conftest import Overhear

LABEL = torch.tensor([2])


def normalised_net() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Sigmoid(), nn.Flatten(), nn.Linear(16, 3)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.linspace(-0.5, 0.7, parameter.numel()).view_as(parameter))
        model[1].running_mean = torch.tensor([0.1, -0.2, 0.3, 0.0])
        model[1].running_var = torch.tensor([0.5, 2.0, 1.0, 0.1])
    return model


@pytest.mark.parametrize("functional_form", [False, True])
def test_the_private_batch_gives_the_gradient_heard(
    functional_form: bool, net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    seen, known = overhear(net, image, LABEL)
    victim = rebuild(seen, known, dtype=torch.float32)

    gradient = victim.functional_gradient if functional_form else victim.gradient

    for name, tensor in gradient(image, LABEL).items():
        torch.testing.assert_close(tensor, seen.update[name])


def test_the_weights_in_force_count_and_not_those_of_the_architecture(
    net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    seen, known = overhear(net, image, LABEL)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.fill_(9.0)

    victim = rebuild(seen, known, dtype=torch.float64)

    for name, tensor in victim.gradient(image.double(), LABEL).items():
        torch.testing.assert_close(tensor.float(), seen.update[name])
    assert all(bool((parameter == 9).all()) for parameter in net.parameters())


@pytest.mark.parametrize("train_mode", [False, True])
def test_batch_normalisation_uses_the_statistics_the_client_used(
    train_mode: bool, overhear: Overhear, rng: torch.Generator
) -> None:
    model = normalised_net().train(train_mode)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images, labels = torch.rand(3, 1, 4, 4, generator=rng), torch.tensor([0, 2, 1])
    seen, known = overhear(model, images, labels)
    seen = replace(seen, buffers=buffers)
    known = replace(known, model=normalised_net(), recipe=LocalRecipe(train_mode=train_mode))
    victim = rebuild(seen, known, dtype=torch.float32)

    for gradient in (victim.gradient, victim.functional_gradient):
        for name, tensor in gradient(images, labels).items():
            torch.testing.assert_close(tensor, seen.update[name], rtol=1e-4, atol=1e-6)


def test_without_running_statistics_evaluation_mode_cannot_be_rebuilt(
    image: Tensor, overhear: Overhear
) -> None:
    seen, known = overhear(normalised_net().eval(), image, LABEL)

    with pytest.raises(AttackFailed, match=r"running statistics of '1' were not heard"):
        rebuild(seen, replace(known, recipe=LocalRecipe(train_mode=False)), dtype=torch.float32)


def test_a_mean_over_clients_that_normalise_their_own_batches_is_refused(
    overhear: Overhear, rng: torch.Generator
) -> None:
    images, labels = torch.rand(4, 1, 4, 4, generator=rng), torch.tensor([0, 2, 1, 1])
    halves = [overhear(normalised_net(), images[at : at + 2], labels[at : at + 2]) for at in (0, 2)]
    (first, known), (second, _) = halves
    mean = {name: (first.update[name] + second.update[name]) / 2 for name in first.update}
    seen = replace(first, kind=Kind.AGGREGATE, update=mean)
    all_four = replace(known, batch_size=4)

    for recipe in (None, LocalRecipe(), LocalRecipe(batch_size=2)):
        with pytest.raises(AttackFailed, match=r"layer '1' normalises each client's batch"):
            rebuild(seen, replace(all_four, recipe=recipe), dtype=torch.float32)


@pytest.mark.parametrize("norm", ["one client", "evaluation mode", "instance"])
def test_a_mean_is_rebuilt_where_no_client_normalises_its_own_batch(
    norm: str, overhear: Overhear, rng: torch.Generator
) -> None:
    images, labels = torch.rand(4, 1, 4, 4, generator=rng), torch.tensor([0, 2, 1, 1])
    model = normalised_net().train(norm != "evaluation mode")
    if norm == "instance":
        model[1] = nn.InstanceNorm2d(4)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    recipe = LocalRecipe(batch_size=4 if norm == "one client" else 2, train_mode=model.training)
    seen, known = overhear(model, images, labels)  # the mean of two equal shares is this gradient

    victim = rebuild(
        replace(seen, kind=Kind.AGGREGATE, buffers=buffers),
        replace(known, recipe=recipe),
        dtype=torch.float32,
    )

    for name, tensor in victim.gradient(images, labels).items():
        torch.testing.assert_close(tensor, seen.update[name], rtol=1e-4, atol=1e-6)


def test_what_was_not_heard_takes_no_part(
    net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    seen, known = overhear(net, image, LABEL)
    masks = {name: torch.ones_like(t, dtype=torch.bool) for name, t in seen.update.items()}
    masks["0.weight"].view(-1)[::2] = False
    masks["3.bias"][:] = False
    garbage = {
        name: torch.where(masks[name], tensor, torch.nan) for name, tensor in seen.update.items()
    }

    victim = rebuild(replace(seen, update=garbage, visible=masks), known, dtype=torch.float32)

    gradient = victim.gradient(image, LABEL)
    assert gradient.keys() == victim.target.keys() == {"0.weight", "0.bias", "3.weight"}
    assert gradient["0.weight"].view(-1)[::2].eq(0).all()
    for name, tensor in gradient.items():
        torch.testing.assert_close(tensor, victim.target[name])


def test_one_local_step_is_as_good_as_a_gradient(
    net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    seen, known = overhear(net, image, LABEL)
    delta = {name: -0.1 * tensor for name, tensor in seen.update.items()}

    victim = rebuild(
        replace(seen, kind=Kind.DELTA, update=delta),
        replace(known, recipe=LocalRecipe(learning_rate=0.1)),
        dtype=torch.float32,
    )

    for name, tensor in victim.target.items():
        torch.testing.assert_close(tensor, seen.update[name])


def test_the_number_of_classes_is_read_off_the_model(
    net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    victim = rebuild(*overhear(net, image, LABEL), dtype=torch.float32)

    assert victim.num_classes == 3
    assert victim.batch_size == 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"weights": None}, "weights in force, which were not heard"),
        ({"weights": {}}, "weights in force of .* were not heard"),
        ({"weights": {"other": torch.ones(1)}}, "weights heard have no counterpart .* 'other'"),
        ({"update": {"other": torch.ones(1)}}, "update heard have no counterpart .* 'other'"),
        ({"update": {"3.bias": torch.ones(4)}}, r"heard of '3.bias' has shape \(4,\)"),
        ({"update": {"3.bias": torch.zeros(3)}}, "nothing to match"),
        ({"update": {}}, "names no parameter"),
        ({"update": {"3.bias": torch.tensor([torch.nan, 0, 1])}}, "not finite"),
        ({"kind": Kind.SIZES_ONLY}, "does not carry one client's gradient"),
        ({"kind": Kind.DELTA}, "grant 'local-recipe'"),
    ],
)
def test_an_observation_that_cannot_be_matched_is_refused(
    change: dict[str, object], reason: str, net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    seen, known = overhear(net, image, LABEL)

    with pytest.raises(AttackFailed, match=reason):
        rebuild(replace(seen, **change), known, dtype=torch.float32)  # type: ignore[arg-type]


@pytest.mark.parametrize("missing", ["model", "input_shape", "batch_size"])
def test_what_was_not_granted_is_asked_for(
    missing: str, net: nn.Module, image: Tensor, overhear: Overhear
) -> None:
    seen, known = overhear(net, image, LABEL)

    with pytest.raises(AttackFailed, match="grant"):
        rebuild(seen, replace(known, **{missing: None}), dtype=torch.float32)  # type: ignore[arg-type]


def test_dropout_in_training_mode_is_refused_and_the_global_generator_left_alone(
    image: Tensor, overhear: Overhear
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3)).eval()
    seen, known = overhear(model, image, LABEL)
    before = torch.get_rng_state()

    with pytest.raises(AttackFailed, match=r"random numbers in training mode \('1'\)"):
        rebuild(seen, known, dtype=torch.float32)

    assert torch.equal(torch.get_rng_state(), before)
    rebuild(seen, replace(known, recipe=LocalRecipe(train_mode=False)), dtype=torch.float32)
