from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import (
    ActiveAttack,
    AttackFailed,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
    Reconstruction,
    Tensors,
)
from attacks.robbing_the_fed import RobbingTheFed, expected_hits
from attacks.threats import Capability
from fedsim.data.load import load_data
from fedsim.models.build import build_model
from tests.attacks.overhearing import gradient_of_batch

SHAPE = (3, 6, 6)
CLASSES = 5


def network(rng: torch.Generator, *, norm: bool = False) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(int(torch.randint(1 << 30, (), generator=rng)))
        return nn.Sequential(
            nn.Conv2d(3, 4, 3),
            nn.BatchNorm2d(4) if norm else nn.Identity(),
            nn.Sigmoid(),
            nn.Flatten(),
            nn.Linear(64, CLASSES),
        )


def images_of_brightness(levels: Tensor, rng: torch.Generator) -> Tensor:
    images = torch.rand(len(levels), *SHAPE, generator=rng) * 0.2
    images = images - images.flatten(1).mean(1).view(-1, 1, 1, 1)
    return images + levels.view(-1, 1, 1, 1)


def attacked(
    attack: RobbingTheFed,
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    rng: torch.Generator,
    *,
    kind: Kind = Kind.GRADIENT,
    spoil: Callable[[dict[str, Tensor]], object] = lambda _: None,
    public: Tensor | None = None,
) -> Reconstruction:
    model = attack.implant(model, SHAPE, CLASSES)
    recipe = LocalRecipe(learning_rate=0.1, train_mode=True)
    known = Knowledge(
        model=model,
        input_shape=SHAPE,
        batch_size=len(inputs),
        recipe=recipe,
        public_sample=public,
    )
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    sent: Tensors = attack.tamper(
        weights, known, receiver="client-0", target="client-0", earlier=[], rng=rng
    )
    model.load_state_dict({**model.state_dict(), **sent})
    update = gradient_of_batch(model, inputs, labels)
    if kind is Kind.WEIGHTS:
        update = {name: sent[name] - 0.1 * g for name, g in update.items()}
    spoil(update)
    seen = Observation(
        round=1, sender="client-0", receiver="server", kind=kind, update=update, weights=sent
    )
    return attack(seen, known, rng=rng)


def psnr_to_nearest(found: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    mse = (found[:, None] - images[None]).square().flatten(2).mean(2)
    least, which = mse.min(1)
    return -10 * least.clamp_min(1e-20).log10(), which


@pytest.mark.parametrize("kind", [Kind.GRADIENT, Kind.WEIGHTS])
def test_images_alone_in_their_bins_are_read_off_exactly_with_their_labels(
    kind: Kind, rng: torch.Generator
) -> None:
    images = images_of_brightness(torch.linspace(0.3, 0.65, 8), rng)
    labels = torch.arange(8) % CLASSES

    found = attacked(RobbingTheFed(), network(rng), images, labels, rng, kind=kind)

    assert found.inputs is not None
    assert found.labels is not None
    psnr, which = psnr_to_nearest(found.inputs, images)
    assert sorted(which.tolist()) == list(range(8))
    assert float(psnr.min()) > 60  # dB; rounding of float32 leaves about 100
    assert found.labels.tolist() == labels[which].tolist()
    assert found.certified is not None
    # Rounding of new weights hides the way back, where the proof would be.
    assert bool(found.certified.all()) is (kind is Kind.GRADIENT)


def test_no_mixture_is_certified_among_a_thousand_labels(rng: torch.Generator) -> None:
    """One equation per bin is passed by chance, for one of so many labels."""
    images = images_of_brightness(0.47 + 0.1 * torch.randn(60, generator=rng), rng)
    labels = torch.randint(1000, (60,), generator=rng)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pixels = images[0].numel()
        model = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 200), nn.ReLU(), nn.Linear(200, 1000))

    found = attacked(RobbingTheFed(bins=40), model, images, labels, rng)

    assert found.inputs is not None
    assert found.certified is not None
    psnr, _ = psnr_to_nearest(found.inputs, images)
    assert (psnr[found.certified] > 60).all()
    assert found.certified.any()


def test_a_bin_with_two_images_is_not_returned_unless_asked_for() -> None:
    rng = torch.Generator().manual_seed(
        1
    )  # draws in which no image tells the block next to nothing
    images = images_of_brightness(torch.tensor([0.3, 0.5, 0.5, 0.6]), rng)
    labels = torch.tensor([0, 1, 2, 3])

    alone = attacked(RobbingTheFed(), network(rng), images, labels, rng)
    everything = attacked(RobbingTheFed(mixtures=True), network(rng), images, labels, rng)

    assert alone.inputs is not None
    assert sorted(psnr_to_nearest(alone.inputs, images)[1].tolist()) == [0, 3]
    assert everything.inputs is not None
    assert everything.certified is not None
    assert everything.certified.tolist() == [True, True, False]


def test_neighbouring_rows_must_weigh_every_image_alike(rng: torch.Generator) -> None:
    """The key idea: rows that differ in anything but their threshold isolate nothing."""

    class Uneven(RobbingTheFed):
        def tamper(self, weights, known, **rest):  # type: ignore[no-untyped-def]
            sent = super().tamper(weights, known, **rest)
            back = sent["imprint.back.weight"]
            noise = torch.rand(back.shape[1], generator=torch.Generator().manual_seed(0))
            return {**sent, "imprint.back.weight": back * noise}

    images = images_of_brightness(torch.linspace(0.3, 0.65, 8), rng)

    found = attacked(Uneven(), network(rng), images, torch.arange(8) % CLASSES, rng)

    assert found.inputs is not None  # the brightest image is alone above its threshold anyway
    assert set(psnr_to_nearest(found.inputs, images)[1].tolist()) == {7}


def test_a_batch_normalised_network_gives_images_without_proof(rng: torch.Generator) -> None:
    images = images_of_brightness(torch.linspace(0.3, 0.65, 8), rng)

    found = attacked(
        RobbingTheFed(), network(rng, norm=True), images, torch.arange(8) % CLASSES, rng
    )

    assert found.inputs is not None
    assert len(found.inputs) == 8
    assert float(psnr_to_nearest(found.inputs, images)[0].min()) > 60  # dB
    assert found.certified is None
    assert found.labels is None


def test_bins_follow_the_public_sample(rng: torch.Generator) -> None:
    dark = images_of_brightness(0.1 + 0.01 * torch.randn(200, generator=rng), rng)
    mine = images_of_brightness(torch.linspace(0.091, 0.109, 8), rng)
    labels = torch.arange(8) % CLASSES

    with pytest.raises(AttackFailed, match="darker than the lowest"):
        attacked(RobbingTheFed(bins=64), network(rng), mine, labels, rng)
    informed = attacked(RobbingTheFed(bins=64), network(rng), mine, labels, rng, public=dark)

    assert informed.inputs is not None
    assert len(informed.inputs) >= 6  # some bin gradients may be too weak to prove


def test_a_hidden_block_adds_nothing_until_it_is_tampered_with(rng: torch.Generator) -> None:
    model = network(rng)
    images = torch.rand(2, *SHAPE, generator=rng)

    implanted = RobbingTheFed().implant(model, SHAPE, CLASSES)

    assert isinstance(RobbingTheFed(), ActiveAttack)
    torch.testing.assert_close(implanted(images), model(images))
    assert set(dict(model.named_parameters())) < set(dict(implanted.named_parameters()))


def test_expected_hits_are_those_of_throwing_balls(rng: torch.Generator) -> None:
    p = torch.tensor([0.5, 0.2, 0.1])
    throws = torch.multinomial(torch.tensor([0.5, 0.2, 0.1, 0.2]), 4_000 * 6, True, generator=rng)
    counts = functional.one_hot(throws.view(4_000, 6), 4)[..., :3].sum(1)

    hits = float((counts == 1).sum(1).double().mean())

    assert expected_hits(p, 6) == pytest.approx(hits, abs=0.05)  # standard error 0.01


def test_what_was_not_heard_and_models_without_a_block_are_refused(rng: torch.Generator) -> None:
    images = images_of_brightness(torch.linspace(0.3, 0.65, 4), rng)
    labels = torch.arange(4)
    plain = network(rng)
    seen = Observation(
        round=1,
        sender="c",
        receiver="s",
        kind=Kind.GRADIENT,
        update=gradient_of_batch(plain, images, labels),
    )

    with pytest.raises(AttackFailed, match="no implanted block"):
        RobbingTheFed()(seen, Knowledge(model=plain, input_shape=SHAPE, batch_size=4), rng=rng)
    with pytest.raises(AttackFailed, match="not heard completely"):
        attacked(
            RobbingTheFed(),
            plain,
            images,
            labels,
            rng,
            spoil=lambda update: update.__delitem__("imprint.measure.bias"),
        )
    with pytest.raises(AttackFailed, match="local steps"):
        RobbingTheFed().check(Knowledge(recipe=LocalRecipe(num_steps=3, learning_rate=0.1)))


def test_the_attack_says_what_it_changes_and_refuses_settings_that_mean_nothing() -> None:
    assert {Capability.CHANGE_WEIGHTS, Capability.CHANGE_ARCHITECTURE} < RobbingTheFed().needs
    with pytest.raises(ValueError, match="bins"):
        RobbingTheFed(bins=1)
    with pytest.raises(ValueError, match="spread"):
        RobbingTheFed(spread=0.0)


@pytest.mark.slow
def test_hits_on_cifar_are_those_of_throwing_images_into_the_bins(real_data: Path) -> None:
    data = load_data("cifar10", root=str(real_data), options={})
    population, batch = data.train_inputs, 64
    hits, singles, expected = [], [], []
    for seed in range(10):
        rng = torch.Generator().manual_seed(seed)
        model = build_model("dlg-lenet", data.input_shape, 10, rng=rng, options={})
        attack = RobbingTheFed()
        model = attack.implant(model, data.input_shape, 10)
        known = Knowledge(
            model=model,
            input_shape=data.input_shape,
            batch_size=batch,
            public_sample=data.test_inputs[:100],
        )
        weights = {name: p.detach() for name, p in model.named_parameters()}
        sent = attack.tamper(weights, known, receiver="a", target="a", earlier=[], rng=rng)
        model.load_state_dict({**model.state_dict(), **sent})
        chosen = torch.randperm(len(population), generator=rng)[:batch]
        images, labels = population[chosen], data.train_labels[chosen]
        seen = Observation(
            round=1,
            sender="a",
            receiver="server",
            kind=Kind.GRADIENT,
            update=gradient_of_batch(model, images, labels),
            weights=sent,
        )

        found = attack(seen, known, rng=rng)

        assert found.inputs is not None
        assert found.labels is not None
        psnr, which = psnr_to_nearest(found.inputs, images)
        assert float(psnr.min()) > 60  # dB; rounding of float32 leaves about 100
        assert found.labels.tolist() == labels[which].tolist()
        weight, bias = sent["imprint.measure.weight"][0, 0], sent["imprint.measure.bias"]
        heights = -(bias / weight).double() / images[0].numel()

        def occupied(some: Tensor, heights: Tensor = heights) -> Tensor:
            places = torch.bucketize(some.flatten(1).double().mean(1), heights)
            return torch.bincount(places, minlength=len(heights) + 1)[1:]

        hits.append(len(set(which.tolist())))
        singles.append(int((occupied(images) == 1).sum()))
        expected.append(expected_hits(occupied(population) / len(population), batch))

    error = float(torch.tensor(singles).double().std()) / len(singles) ** 0.5
    assert abs(sum(singles) - sum(expected)) / len(singles) < 4 * error
    assert sum(hits) > 0.9 * sum(singles)  # a few gradients are too weak for a proof
    assert all(hit <= single for hit, single in zip(hits, singles, strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bins": 1}, "bins must be at least 2, got 1"),
        ({"spread": float("nan")}, "spread must be above 0, got nan"),
        ({"centre": float("nan")}, "centre must be from 0 to 1, got nan"),
        ({"centre": 47.0}, "centre must be from 0 to 1, got 47"),
        ({"law": "normal"}, "law must be one of auto, gaussian, laplace, got 'normal'"),
    ],
)
def test_settings_that_would_be_silently_wrong_are_refused(
    options: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        RobbingTheFed(**options)  # type: ignore[arg-type]
