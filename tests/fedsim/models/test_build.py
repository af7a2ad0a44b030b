"""What holds for every model, whoever wrote it."""

import pytest
import torch
from torch import nn

from fedsim.errors import ConfigError
from fedsim.models.build import build_model, refuse_misfit

SMALL = (3, 16, 16)
OPTIONS: dict[str, dict[str, object]] = {
    "dlg-lenet": {},
    "mlp": {"hidden": [16, 8], "activation": "tanh"},
    "convnet": {"width": 2},
    "resnet20": {"width": 2},
    "resnet18": {"width": 2},
    "dlg-resnet20": {"width": 2},
    "dlg-resnet18": {"width": 2, "init_range": 0.5},
    "torchvision:mobilenet_v3_small": {},
    "fedsim.models.mlp:mlp": {},  # a user's own: any reference
}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def weights(name: str, seed: int) -> torch.Tensor:
    model = build_model(name, SMALL, 10, rng=generator(seed), options=OPTIONS[name])
    return nn.utils.parameters_to_vector(model.parameters()).detach()


@pytest.mark.parametrize(
    ("name", "input_shape", "num_classes", "expected"),
    [
        ("dlg-lenet", (3, 32, 32), 100, 85_036),
        ("dlg-lenet", (1, 28, 28), 10, 13_426),
        ("dlg-lenet", (3, 32, 32), 10, 15_826),
        ("convnet", (3, 32, 32), 10, 2_904_970),
        ("resnet20", (3, 32, 32), 10, 272_474),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("dlg-resnet20", (3, 32, 32), 10, 272_474),
        ("dlg-resnet18", (3, 32, 32), 10, 11_173_962),
        ("mlp", (1, 8, 8), 10, 64 * 128 + 128 + 128 * 10 + 10),
    ],
)
def test_a_model_has_as_many_parameters_as_published(
    name: str, input_shape: tuple[int, int, int], num_classes: int, expected: int
) -> None:
    model = build_model(name, input_shape, num_classes, rng=generator(0), options={})

    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.parametrize("name", OPTIONS)
def test_the_same_generator_gives_the_same_weights_and_another_gives_others(name: str) -> None:
    first = weights(name, 3)
    torch.rand(5)  # moves the global generator, which must not matter

    assert torch.equal(weights(name, 3), first)
    assert not torch.equal(weights(name, 4), first)


@pytest.mark.parametrize("name", OPTIONS)
def test_building_a_model_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()

    weights(name, 3)

    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("input_shape", [(1, 9, 9), (1, 28, 28), (3, 32, 32), (3, 20, 33)])
def test_a_model_returns_one_logit_per_class_for_any_shape_it_accepts(
    name: str, input_shape: tuple[int, int, int], rng: torch.Generator
) -> None:
    model = build_model(name, input_shape, 7, rng=rng, options=OPTIONS[name])

    logits = model(torch.rand(2, *input_shape, generator=rng))

    assert logits.shape == (2, 7)


def test_one_draw_is_taken_from_the_generator_however_large_the_model() -> None:
    small, large = generator(0), generator(0)

    build_model("mlp", SMALL, 10, rng=small, options={"hidden": [1]})
    build_model("mlp", SMALL, 10, rng=large, options={"hidden": [64, 64]})

    assert torch.equal(small.get_state(), large.get_state())


def test_mean_and_std_put_a_normalisation_in_front_of_a_flat_list_of_layers(
    rng: torch.Generator,
) -> None:
    images = torch.rand(4, *SMALL, generator=rng)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    plain = build_model("mlp", SMALL, 10, rng=generator(1), options={})

    model = build_model("mlp", SMALL, 10, rng=generator(1), options={"mean": mean, "std": std})

    by_hand = (images - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    torch.testing.assert_close(model(images), plain(by_hand))
    assert next(iter(model.named_children()))[0] == "normalize"
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_a_model_that_is_not_a_list_of_layers_is_normalised_as_a_whole() -> None:
    options = {"width": 2, "mean": [0.5] * 3, "std": [0.2] * 3}

    model = build_model("resnet20", SMALL, 10, rng=generator(0), options=options)

    assert [name for name, _ in model.named_children()] == ["normalize", "network"]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("dlg-lenett", {}, "unknown model 'dlg-lenett'; did you mean 'dlg-lenet'?"),
        (
            "dlg-lenet",
            {"init_rang": 1.0},
            "model.options: unknown option 'init_rang'; did you mean 'init_range'?",
        ),
        (
            "dlg-lenet",
            {"init_range": -1},
            "model.options.init_range must be greater than 0, got -1",
        ),
        (
            "mlp",
            {"hidden": [8, 0]},
            r"model.options.hidden\[1\] must be greater than or equal to 1",
        ),
        ("mlp", {"activation": "relu6"}, "model.options.activation must be 'relu', 'sigmoid'"),
        ("torchvision:resnet19", {}, "no classifier 'resnet19'; did you mean 'resnet1[85]2?'"),
        ("torchvision:resnet18", {"depth": 3}, "unknown option 'depth'; there are none"),
        ("convnet", {"mean": [0.5] * 3}, "model.options.std is required"),
        (
            "convnet",
            {"mean": [0.5], "std": [0.5]},
            r"model.options.mean must hold one value per channel \(3\), got 1",
        ),
        (
            "convnet",
            {"mean": [0.5] * 3, "std": [0.5, 0, 0.5]},
            "model.options.std must be above 0 in every channel",
        ),
    ],
)
def test_a_wrong_name_or_option_is_refused_by_name(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_model(name, SMALL, 10, rng=generator(0), options=options)


def test_a_model_that_images_do_not_fit_is_refused() -> None:
    alexnet = build_model("torchvision:alexnet", (3, 8, 8), 10, rng=generator(0), options={})

    with pytest.raises(ConfigError, match=r"'torchvision:alexnet' cannot take inputs of shape"):
        refuse_misfit("torchvision:alexnet", alexnet, (3, 8, 8), 10)


def test_a_model_that_returns_something_else_than_logits_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"of shape \(1, 10\) for one input, got \(1, 192\)"):
        refuse_misfit("mine", nn.Flatten(), (3, 8, 8), 10)
