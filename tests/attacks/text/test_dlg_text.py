from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.observation import (
    Attack,
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
)
from attacks.text.dlg_text import DLGText
from attacks.text.tokens import Head

from .overheard_texts import (
    LENGTH,
    VOCABULARY,
    following,
    gradient_heard,
    known_of,
    masked,
    sentences,
    transformer,
)

Case = tuple[Tensor, Observation, Knowledge]


def case_of(head: Head, rng: torch.Generator, *, decoder: bool = False, num: int = 1) -> Case:
    texts = sentences(rng, num=num)
    model = transformer(head, rng, decoder=decoder)
    labels = torch.arange(num) + 3
    if head == "masked":
        seen = gradient_heard(model, *masked(texts, 2, 5))
    else:
        seen = gradient_heard(model, texts, following(texts) if head == "causal" else labels)
    return texts, seen, known_of(model, head, batch_size=num)


@pytest.mark.parametrize(
    ("head", "decoder"),
    [("masked", False), ("causal", True), ("classes", False), ("classes", True)],
)
def test_a_sentence_is_read_exactly_and_proved(
    head: Head, decoder: bool, rng: torch.Generator
) -> None:
    texts, seen, known = case_of(head, rng, decoder=decoder)

    found = DLGText()(seen, known, rng=rng)

    assert found.inputs is not None
    assert found.inputs.tolist() == texts.tolist()
    assert found.certified is not None
    assert found.certified.all()
    assert found.labels is None or found.labels.tolist() == [3]


def test_examples_of_one_batch_are_read_together(rng: torch.Generator) -> None:
    texts, seen, known = case_of("causal", rng, decoder=True, num=2)

    found = DLGText()(seen, known, rng=rng)

    assert found.inputs is not None
    assert sorted(found.inputs.tolist()) == sorted(texts.tolist())


def test_a_causal_model_with_an_output_layer_of_its_own_is_read_too(rng: torch.Generator) -> None:
    texts = sentences(rng)
    model = transformer("causal", rng, decoder=True, tied=False)
    seen = gradient_heard(model, texts, following(texts))

    found = DLGText()(seen, known_of(model, "causal"), rng=rng)

    assert found.inputs is not None
    assert (found.inputs == texts).float().mean() > 0.8  # a guess has start and end: a quarter


def test_the_guess_is_kept_at_the_steps_asked_for(rng: torch.Generator) -> None:
    texts, seen, known = case_of("masked", rng)

    found = DLGText(looks=(0, 2, 4), inner=1, steps=4, restarts=1)(seen, known, rng=rng)

    assert [snapshot.step for snapshot in found.snapshots] == [0, 2, 4]
    losses = [snapshot.matching_loss for snapshot in found.snapshots]
    assert losses == sorted(losses, reverse=True)
    assert found.snapshots[0].inputs.shape == texts.shape
    assert found.snapshots[0].inputs.dtype == torch.int64


def test_weights_after_one_step_tell_as_much_as_a_gradient(rng: torch.Generator) -> None:
    texts, seen, known = case_of("classes", rng)
    moved = {name: -0.5 * slope for name, slope in seen.update.items()}
    stepped = replace(seen, kind=Kind.DELTA, update=moved)
    recipe = LocalRecipe(learning_rate=0.5)

    found = DLGText()(stepped, replace(known, recipe=recipe), rng=rng)

    assert found.inputs is not None
    assert found.inputs.tolist() == texts.tolist()


def test_layers_in_between_are_enough_where_no_embedding_was_heard(rng: torch.Generator) -> None:
    texts, seen, known = case_of("classes", rng, decoder=True)
    heard = {
        name: slope
        for name, slope in seen.update.items()
        if not name.endswith(("wte.weight", "wpe.weight"))
    }

    found = DLGText()(
        replace(seen, kind=Kind.CHUNK, update=heard),
        replace(known, input_shape=(texts.shape[1],)),
        rng=rng,
    )

    assert len(heard) == len(seen.update) - 2
    assert found.inputs is not None
    assert found.inputs.tolist() == texts.tolist()


def test_a_bag_of_tokens_leaves_only_those_of_the_text(rng: torch.Generator) -> None:
    texts, seen, known = case_of("causal", rng, decoder=True)

    found = DLGText(use_bag=True, steps=0, restarts=1)(seen, known, rng=rng)

    assert found.notes["candidates"] == texts.shape[1] - 2
    assert found.inputs is not None
    assert set(found.inputs.flatten().tolist()) <= set(texts.flatten().tolist())


def test_nothing_heard_but_noise_is_proved_to_nobody(rng: torch.Generator) -> None:
    _, seen, known = case_of("classes", rng)
    noisy = {
        name: slope + 0.1 * torch.randn(slope.shape, generator=rng)
        for name, slope in seen.update.items()
    }

    found = DLGText(steps=2)(replace(seen, update=noisy), known, rng=rng)

    assert found.inputs is not None
    assert found.inputs.shape == (1, LENGTH)  # every position has a gradient
    assert found.certified is None


def test_a_spent_budget_ends_the_search_with_a_guess(rng: torch.Generator) -> None:
    texts, seen, known = case_of("causal", rng, decoder=True)

    found = DLGText()(seen, known, rng=rng, budget=Budget(0.0))

    assert not found.finished
    assert found.inputs is not None
    assert found.inputs.shape == texts.shape


def test_equal_seeds_give_equal_guesses(rng: torch.Generator) -> None:
    _, seen, known = case_of("masked", rng)

    one, other = (
        DLGText(steps=1, restarts=1)(seen, known, rng=torch.Generator().manual_seed(7))
        for _ in range(2)
    )

    assert one.matching_loss == other.matching_loss


def test_images_and_several_local_steps_are_refused(rng: torch.Generator) -> None:
    _, seen, known = case_of("causal", rng, decoder=True)
    assert isinstance(DLGText(), Attack)

    with pytest.raises(AttackFailed, match="on text"):
        DLGText().check(replace(known, tokens=None))
    with pytest.raises(AttackFailed, match="takes embeddings"):
        DLGText().check(replace(known, model=nn.Linear(2, VOCABULARY)))
    with pytest.raises(AttackFailed, match="up to 3 local steps"):
        DLGText().check(replace(known, recipe=LocalRecipe(num_steps=3, learning_rate=0.1)))
    with pytest.raises(AttackFailed, match="weights in force"):
        DLGText()(replace(seen, weights=None), known, rng=rng)


def test_a_model_with_dropout_is_refused(rng: torch.Generator) -> None:
    texts = sentences(rng)
    model = transformer("causal", rng, decoder=True, dropout=0.5)

    with pytest.raises(AttackFailed, match="random numbers"):
        DLGText()(
            gradient_heard(model, texts, following(texts)), known_of(model, "causal"), rng=rng
        )


def test_settings_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="looks"):
        DLGText(looks=(-1,))
    with pytest.raises(ValueError, match="inner"):
        DLGText(inner=0)
