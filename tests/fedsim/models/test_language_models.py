import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from attacks.text.language import LanguageModel, cross_entropy, num_tokens_heard
from attacks.text.tokens import IGNORED, Head, Tokens
from fedsim.errors import ConfigError
from fedsim.models.build import build_model
from fedsim.models.language_models import Transformer, bert, gpt2

SMALL = {"layers": 2, "width": 16, "heads": 2}


def tokens_of(head: Head) -> Tokens:
    return Tokens(vocabulary_size=30, head=head, pad=0, start=1, end=2, mask=3)


def model_of(name: str, head: Head, seed: int = 0) -> Transformer:
    tokens = tokens_of(head)
    classes = 3 if head == "classes" else tokens.vocabulary_size
    factory = bert if name == "bert" else gpt2
    rng = torch.Generator().manual_seed(seed)
    return factory((8,), classes, rng=rng, tokens=tokens, layers=2, width=16, heads=2)


KINDS: list[tuple[str, Head]] = [
    ("bert", "masked"),
    ("bert", "classes"),
    ("gpt2", "causal"),
    ("gpt2", "classes"),
]


@pytest.mark.parametrize(("name", "head"), KINDS)
def test_embeddings_stand_in_for_tokens(name: str, head: Head, rng: torch.Generator) -> None:
    model = model_of(name, head)
    tokens = torch.randint(4, 30, (2, 8), generator=rng)

    logits = model(tokens)

    assert isinstance(model, LanguageModel)
    assert logits.shape == ((2, 3) if head == "classes" else (2, 8, 30))
    torch.testing.assert_close(model(model.token_embedding(tokens)), logits)


@pytest.mark.parametrize(("name", "head"), KINDS)
def test_weights_are_of_the_generator_alone(name: str, head: Head) -> None:
    one, again, other = (list(model_of(name, head, seed).parameters()) for seed in (0, 0, 1))

    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize(("name", "head"), KINDS)
def test_nobody_attends_to_a_pad(name: str, head: Head, rng: torch.Generator) -> None:
    model = model_of(name, head)
    short = torch.randint(4, 30, (1, 5), generator=rng)
    padded = torch.cat([short, torch.zeros(1, 3, dtype=torch.int64)], dim=1)

    alone, among = model(short), model(padded)

    if head != "classes":
        among = among[:, :5]
    torch.testing.assert_close(among, alone, rtol=1e-4, atol=1e-5)


def test_a_decoder_sees_nothing_that_comes_later(rng: torch.Generator) -> None:
    model = model_of("gpt2", "causal")
    tokens = torch.randint(4, 30, (1, 8), generator=rng)
    changed = tokens.clone()
    changed[0, 5] = 4 + (int(tokens[0, 5]) - 3) % 26

    before, after = model(tokens), model(changed)

    torch.testing.assert_close(after[:, :5], before[:, :5])
    assert not torch.allclose(after[:, 5:], before[:, 5:])


@pytest.mark.parametrize(("name", "head"), KINDS)
def test_gradients_can_be_differentiated_and_taken_one_by_one(name: str, head: Head) -> None:
    model = model_of(name, head)
    named = {key: one.detach() for key, one in model.named_parameters()}
    tokens = torch.tensor([[1, 9, 7, 2, 0, 0, 0, 0], [1, 4, 8, 5, 6, 7, 9, 2]])
    labels = torch.tensor([0, 2])
    if head != "classes":
        labels = torch.where(tokens > 3, tokens, IGNORED)

    def loss(weights: dict[str, Tensor], inputs: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, weights, (inputs[None],))
        return cross_entropy(logits, label[None])

    each = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))(named, tokens, labels)
    for place in (0, 1):
        own = torch.func.grad(loss)(named, tokens[place], labels[place])
        for key, value in own.items():
            torch.testing.assert_close(each[key][place], value, rtol=1e-3, atol=1e-5)

    embedded = model.token_embedding(tokens[1:]).detach().requires_grad_()
    value = cross_entropy(model(embedded), labels[1:])
    first = torch.autograd.grad(
        value, list(model.parameters()), create_graph=True, allow_unused=True
    )
    total = torch.stack([one.square().sum() for one in first if one is not None]).sum()
    (second,) = torch.autograd.grad(total, embedded)
    assert second.abs().sum() > 0


def test_the_length_of_a_text_is_in_the_gradient_of_its_positions() -> None:
    model = model_of("bert", "classes")
    tokens = torch.tensor([[1, 9, 7, 2, 0, 0, 0, 0], [1, 4, 8, 5, 6, 2, 0, 0]])

    cross_entropy(model(tokens), torch.tensor([0, 1])).backward()  # type: ignore[no-untyped-call]

    positions = model.position_embedding
    assert positions is not None
    assert positions.weight.grad is not None
    assert num_tokens_heard(positions.weight.grad) == 6


def test_weights_of_classes_count_by_their_sum(rng: torch.Generator) -> None:
    logits = torch.randn(2, 3, 5, generator=rng)
    labels = torch.tensor([[1, IGNORED, 4], [IGNORED, IGNORED, 0]])
    soft = torch.nn.functional.one_hot(labels.clamp(min=0), 5) * (labels != IGNORED)[..., None]

    expected = cross_entropy(logits, labels)

    torch.testing.assert_close(cross_entropy(logits, soft.float()), expected)
    picked = logits.log_softmax(-1)[[0, 0, 1], [0, 2, 2], [1, 4, 0]]
    torch.testing.assert_close(expected, -picked.mean())


@pytest.mark.parametrize(
    ("name", "head", "options", "expected"),
    [
        ("bert", "causal", {}, "set data.options.task to 'masked', or choose model 'gpt2'"),
        ("gpt2", "masked", {}, "set data.options.task to 'causal', or choose model 'bert'"),
        ("bert", "masked", {"width": 10}, "must be a multiple of model.options.heads"),
        ("bert", "masked", {"pretrained": "/nowhere"}, "could not be read"),
        ("mlp", "masked", {}, "does not read text"),
        ("bert", "masked", {"mean": [0.0], "std": [1.0]}, "normalises the channels of images"),
    ],
)
def test_what_does_not_go_together_is_refused(
    name: str, head: Head, options: dict[str, object], expected: str
) -> None:
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ConfigError, match=expected):
        build_model(name, (8,), 30, rng=rng, options=options, tokens=tokens_of(head))


def test_a_model_of_text_is_refused_for_images_and_one_of_images_for_rows() -> None:
    rng = torch.Generator().manual_seed(0)
    with pytest.raises(ConfigError, match="reads text, and the data hold no text"):
        build_model("bert", (1, 8, 8), 10, rng=rng, options={})
    with pytest.raises(ConfigError, match="reads images"):
        build_model("dlg-lenet", (13,), 3, rng=rng, options={})


@pytest.mark.parametrize(("name", "head"), [("bert", "masked"), ("gpt2", "causal")])
def test_pretrained_weights_are_read_from_a_folder_and_drop_nothing_unless_told(
    name: str, head: Head, tmp_path: Path
) -> None:
    model = model_of(name, head)
    model.network.save_pretrained(str(tmp_path))  # type: ignore[operator]
    config = json.loads((tmp_path / "config.json").read_text())
    dropping = {key: 0.5 for key in config if key.endswith(("dropout_prob", "pdrop"))}
    (tmp_path / "config.json").write_text(json.dumps(config | dropping))
    options = {"pretrained": str(tmp_path)}

    def read(length: int) -> nn.Module:
        rng = torch.Generator().manual_seed(9)
        return build_model(name, (length,), 30, rng=rng, options=options, tokens=tokens_of(head))

    tokens = torch.tensor([[1, 5, 6, 7, 2]])
    assert len(dropping) >= 2
    torch.testing.assert_close(read(8)(tokens), model(tokens))
    with pytest.raises(ConfigError, match=r"set data\.options\.length to no more"):
        read(9)
