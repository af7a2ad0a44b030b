from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.gradinversion import (
    GradInversion,
    agreeing,
    batch_statistics,
    running_statistics,
    statistics_within,
)
from attacks.matching.priors import registered_mean, statistics_distance
from attacks.observation import Attack, AttackFailed, Kind, Knowledge, LocalRecipe, Observation
from attacks.threats import Capability

from .overhearing import overhear

NUM_CLASSES = 4
LABELS = torch.tensor([1, 3])
QUICK = GradInversion(steps=80, warmup=5, step_size=0.05, restarts=2, tv_weight=1e-3)


@pytest.fixture
def model(rng: torch.Generator) -> nn.Module:
    """A sigmoid network with batch normalisation for 1x8x8 inputs, in training mode."""
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.Conv2d(6, 6, 3, padding=1, stride=2),
        nn.BatchNorm2d(6),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(96, NUM_CLASSES),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - 0.5)
    return net


@pytest.fixture
def images(rng: torch.Generator) -> Tensor:
    """Two smooth images, (2, 1, 8, 8), one dark and one bright."""
    blurred = functional.avg_pool2d(torch.rand(2, 1, 10, 10, generator=rng), 3, stride=1)
    return torch.stack((0.6 * blurred[0], 0.4 + 0.6 * blurred[1]))


def overheard(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[Observation, Knowledge]:
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    seen, known = overhear(model, images, labels)
    after = {name: buffer.clone() for name, buffer in model.named_buffers()}
    return replace(seen, buffers=before, buffers_after=after), known


def run(attack: GradInversion, seen: Observation, known: Knowledge, seed: int = 0) -> Tensor:
    found = attack(seen, known, rng=torch.Generator().manual_seed(seed))
    assert found.inputs is not None
    return found.inputs


def error(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).square().mean())


def test_it_is_an_attack_and_needs_statistics_only_when_asked_for() -> None:
    assert isinstance(GradInversion(), Attack)
    assert Capability.BATCHNORM_STATISTICS not in GradInversion().needs
    assert Capability.BATCHNORM_STATISTICS in GradInversion(statistics="running").needs
    assert Capability.LABELS in GradInversion(labels="oracle").needs


def test_running_statistics_sent_back_give_those_of_the_batch_away(
    model: nn.Module, images: Tensor
) -> None:
    overheard(model, images.flip(-1), LABELS)  # an earlier round, so that nothing starts at 0
    seen, known = overheard(model, images, LABELS)
    assert known.model is not None

    found = batch_statistics(seen, known.model)

    expected = statistics_within(model, images, found)
    assert sorted(found) == ["1", "4"]
    for name, one in found.items():
        torch.testing.assert_close(one.mean.float(), expected[name].mean)
        torch.testing.assert_close(one.variance.float(), expected[name].variance)


def test_statistics_do_not_follow_from_a_mean_of_messages_nor_where_nothing_moved(
    model: nn.Module, images: Tensor
) -> None:
    seen, _ = overheard(model, images, LABELS)

    assert batch_statistics(replace(seen, kind=Kind.AGGREGATE), model) == {}
    assert batch_statistics(replace(seen, buffers_after=seen.buffers), model) == {}
    assert batch_statistics(replace(seen, buffers_after=None), model) == {}
    assert running_statistics(seen, model) == {}  # never updated: 0 and 1 say nothing
    assert sorted(running_statistics(replace(seen, buffers=seen.buffers_after), model)) == [
        "1",
        "4",
    ]


def test_two_images_are_found(model: nn.Module, images: Tensor) -> None:
    seen, known = overheard(model, images, LABELS)

    found = GradInversion(steps=300, warmup=20, restarts=2)(
        seen, known, rng=torch.Generator().manual_seed(0)
    )

    assert found.inputs is not None
    assert found.labels is not None
    assert found.labels.tolist() == LABELS.tolist()
    assert found.notes["statistics"] == "sent-back"
    assert error(found.inputs, images) < error(torch.full_like(images, 0.5), images) / 4


def test_batch_statistics_pull_the_guess_towards_those_of_the_batch(
    model: nn.Module, images: Tensor
) -> None:
    seen, known = overheard(model, images, LABELS)
    wanted = statistics_within(model, images, {"1": None, "4": None})

    def apart(attack: GradInversion) -> float:
        found = statistics_within(model, run(attack, seen, known), wanted)
        return float(statistics_distance(found, wanted).detach())

    few = replace(QUICK, steps=25, statistics_weight=1.0)

    assert apart(few) < apart(replace(few, statistics="none")) / 2


def test_seeds_are_drawn_to_what_they_agree_on(model: nn.Module, images: Tensor) -> None:
    seen, known = overheard(model, images, LABELS)
    few = replace(QUICK, steps=20, restarts=3, tv_weight=0.0, langevin=0.0)
    noise = torch.randn(3, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    middle = (0.5 + 0.25 * noise).clamp(0, 1).mean(dim=0)  # of the three starts

    together = error(run(replace(few, group_weight=100.0), seen, known), middle)
    apart = error(run(replace(few, group_weight=0.0), seen, known), middle)

    assert together < apart / 2


def test_agreement_is_a_spring_to_the_registered_mean(rng: torch.Generator) -> None:
    def flat(points: Tensor) -> tuple[Tensor, Tensor]:
        return torch.zeros(len(points)), torch.zeros_like(points)

    points = torch.rand(3, 2, 1, 4, 4, generator=rng)
    away = points - registered_mean(points)

    values, slopes = agreeing(flat, weight=0.5)(points)

    torch.testing.assert_close(values, 0.5 * away.square().flatten(1).mean(dim=1))
    torch.testing.assert_close(slopes, 0.5 * 2 * away / 32)


def test_noise_is_drawn_from_the_generator_alone(model: nn.Module, images: Tensor) -> None:
    seen, known = overheard(model, images, LABELS)
    few = replace(QUICK, steps=4)

    assert torch.equal(run(few, seen, known), run(few, seen, known))
    assert not torch.equal(run(few, seen, known), run(few, seen, known, seed=1))
    assert not torch.equal(run(few, seen, known), run(replace(few, langevin=0.0), seen, known))


def test_minima_find_distinct_labels_and_refuse_more_examples_than_classes(
    model: nn.Module, images: Tensor, rng: torch.Generator
) -> None:
    seen, known = overheard(model, images, LABELS)
    minima = replace(QUICK, steps=1, labels="minima")

    found = minima(seen, known, rng=rng)

    assert found.labels is not None
    assert found.labels.tolist() == LABELS.tolist()
    many = torch.cat((images, images, images))
    with pytest.raises(AttackFailed, match="distinct"):
        minima(*overheard(model, many, LABELS.repeat(3)), rng=rng)


def test_statistics_that_were_not_heard_are_a_failure_only_when_asked_for(
    model: nn.Module, images: Tensor, rng: torch.Generator
) -> None:
    seen, known = overheard(model, images, LABELS)
    deaf = replace(seen, buffers=None, buffers_after=None)
    few = replace(QUICK, steps=1)

    assert few(deaf, known, rng=rng).notes["statistics"] == "none"
    with pytest.raises(AttackFailed, match="running statistics"):
        replace(few, statistics="running")(deaf, known, rng=rng)


def test_several_local_steps_are_refused_before_the_run(model: nn.Module) -> None:
    known = Knowledge(
        model=model,
        input_shape=(1, 8, 8),
        batch_size=2,
        recipe=LocalRecipe(num_steps=3, learning_rate=0.1),
    )

    with pytest.raises(AttackFailed, match="steps"):
        GradInversion().check(known)


@pytest.mark.parametrize("wrong", [{"langevin": -1.0}, {"restarts": 0}, {"step_size": 0.0}])
def test_meaningless_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GradInversion(**wrong)  # type: ignore[arg-type]
