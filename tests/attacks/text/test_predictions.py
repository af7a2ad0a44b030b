from dataclasses import replace

import pytest
import torch

from attacks.defense import Noise
from attacks.observation import AttackFailed
from attacks.text.embedding_matching import relative_distance
from attacks.text.language import cross_entropy
from attacks.text.predictions import Filled, prediction_of
from attacks.text.victim import rebuild_text

from .overheard_texts import (
    LENGTH,
    MASK,
    following,
    gradient_heard,
    known_of,
    masked,
    sentences,
    transformer,
)


def test_masked_places_and_their_labels_are_read_off_the_gradient(rng: torch.Generator) -> None:
    texts = sentences(rng, length=10)
    model = transformer("masked", rng)
    seen = gradient_heard(model, *masked(texts, 3, 4, 8))

    read = prediction_of(rebuild_text(seen, known_of(model, "masked")), cross_entropy, rng=rng)

    assert isinstance(read, Filled)
    assert read.columns.tolist() == [3, 4, 8]
    assert read.places[0, read.columns].tolist() == [MASK] * 3
    assert sorted(read.hidden.tolist()) == sorted(texts[0, [3, 4, 8]].tolist())


def test_a_label_that_is_hidden_twice_is_read_twice(rng: torch.Generator) -> None:
    texts = sentences(rng, length=10)
    texts[0, 7] = texts[0, 2]
    model = transformer("masked", rng)
    seen = gradient_heard(model, *masked(texts, 2, 5, 7))

    read = prediction_of(rebuild_text(seen, known_of(model, "masked")), cross_entropy, rng=rng)

    assert isinstance(read, Filled)
    assert sorted(read.hidden.tolist()) == sorted(texts[0, [2, 5, 7]].tolist())


def test_labels_of_several_examples_are_counted(rng: torch.Generator) -> None:
    texts = sentences(rng, num=2)
    model = transformer("masked", rng)
    seen = gradient_heard(model, *masked(texts, 2))

    victim = rebuild_text(seen, known_of(model, "masked", batch_size=2))
    read = prediction_of(victim, cross_entropy, rng=rng)

    assert isinstance(read, Filled)
    assert read.columns.tolist() == [2]
    assert sorted(read.hidden.tolist()) == sorted(texts[:, 2].tolist())


def test_the_true_assignment_gives_the_gradient_heard_and_another_does_not(
    rng: torch.Generator,
) -> None:
    texts = sentences(rng, length=10)
    model = transformer("masked", rng)
    inputs, labels = masked(texts, 3, 8)
    victim = rebuild_text(gradient_heard(model, inputs, labels), known_of(model, "masked"))
    read = prediction_of(victim, cross_entropy, rng=rng)
    assert isinstance(read, Filled)
    right = 100.0 * (read.hidden[:, None] == texts[0, read.columns]).float()

    apart = [
        relative_distance(victim, victim.gradient(read.loss(victim.table[inputs], one)))
        for one in (right, right.flip(1))
    ]

    assert apart[0] < 1e-5
    assert apart[1] > 1e-2
    guess = read.harden(inputs, right)
    assert guess.fed.tolist() == inputs.tolist()
    assert guess.sentence.tolist() == texts.tolist()


def test_noise_that_is_known_of_hides_no_length(rng: torch.Generator) -> None:
    texts = sentences(rng)
    model = transformer("causal", rng, decoder=True)
    seen = gradient_heard(model, texts, following(texts))
    noisy = {
        name: slope + 1e-3 * torch.randn(slope.shape, generator=rng)
        for name, slope in seen.update.items()
    }
    known = known_of(model, "causal")
    told = replace(known, noise=Noise(deviation=dict.fromkeys(noisy, 1e-3)))

    lengths = [rebuild_text(replace(seen, update=noisy), one).length for one in (known, told)]

    assert lengths == [LENGTH, texts.shape[1]]


@pytest.mark.parametrize("decoder", [False, True])
def test_the_class_of_one_example_is_read_with_or_without_a_bias(
    decoder: bool, rng: torch.Generator
) -> None:
    model = transformer("classes", rng, decoder=decoder)
    for label in (0, 7, 11):
        seen = gradient_heard(model, sentences(rng), torch.tensor([label]))
        known = known_of(model, "classes")

        read = prediction_of(rebuild_text(seen, known), known.loss, rng=rng)

        assert getattr(read, "labels").tolist() == [label]  # noqa: B009


def test_masked_labels_cannot_be_read_without_the_output_bias(rng: torch.Generator) -> None:
    model = transformer("masked", rng)
    seen = gradient_heard(model, *masked(sentences(rng), 2))
    victim = rebuild_text(seen, known_of(model, "masked"))
    silent = type(victim)(**{**vars(victim), "bias_gradient": None})

    with pytest.raises(AttackFailed, match="output bias"):
        prediction_of(silent, cross_entropy, rng=rng)
