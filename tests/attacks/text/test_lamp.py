from typing import Literal

import pytest
import torch
from torch import Tensor

from attacks.observation import AttackFailed
from attacks.text.lamp import LAMP, changed_order
from attacks.threats import Capability

from .overheard_texts import (
    LENGTH,
    following,
    gradient_heard,
    known_of,
    masked,
    sentences,
    transformer,
)


def public_texts(rng: torch.Generator) -> Tensor:
    """Others' sentences, padded, (5, T)."""
    texts = sentences(rng, num=5)
    return torch.cat([texts, torch.zeros(5, LENGTH - texts.shape[1], dtype=torch.int64)], dim=1)


@pytest.mark.parametrize("matching", ["cosine", "l1-l2"])
def test_a_sentence_is_read_exactly(
    matching: Literal["cosine", "l1-l2"], rng: torch.Generator
) -> None:
    texts = sentences(rng)
    model = transformer("classes", rng, decoder=matching == "l1-l2")
    seen = gradient_heard(model, texts, torch.tensor([5]))
    known = known_of(model, "classes", public_sample=public_texts(rng))

    found = LAMP(matching=matching, starts=5, moves=5)(seen, known, rng=rng)

    assert found.inputs is not None
    assert found.inputs.tolist() == texts.tolist()
    assert found.labels is not None
    assert found.labels.tolist() == [5]


def test_masked_places_are_filled_in_whatever_is_moved(rng: torch.Generator) -> None:
    texts = sentences(rng)
    model = transformer("masked", rng)
    seen = gradient_heard(model, *masked(texts, 3))

    found = LAMP(starts=2, moves=3, moves_every=1, burn_in=0.0, steps=3, prior=by_order)(
        seen, known_of(model, "masked"), rng=rng
    )

    assert found.inputs is not None
    assert found.inputs[0, 3] == texts[0, 3]
    assert found.inputs[0, [0, -1]].tolist() == texts[0, [0, -1]].tolist()


def by_order(texts: Tensor) -> Tensor:
    """A language in which tokens ascend."""
    return (texts[:, 1:-2] > texts[:, 2:-1]).float().mean(dim=1)


def test_a_heavy_language_model_puts_tokens_into_its_order(rng: torch.Generator) -> None:
    texts = sentences(rng)
    model = transformer("causal", rng, decoder=True)
    seen = gradient_heard(model, texts, following(texts))
    attack = LAMP(
        language_weight=1e6,
        prior=by_order,
        moves=40,
        moves_every=1,
        burn_in=0.0,
        steps=8,
        starts=1,
        step_size=1e-9,
    )

    found = attack(seen, known_of(model, "causal"), rng=rng)

    ordered = found.snapshots[-1].inputs
    assert by_order(ordered).item() == 0
    assert by_order(found.snapshots[0].inputs).item() > 0


def test_a_change_of_order_loses_no_token(rng: torch.Generator) -> None:
    changes = [changed_order(6, rng) for _ in range(100)]

    assert all(sorted(change.tolist()) == list(range(6)) for change in changes)
    assert len({tuple(change.tolist()) for change in changes}) > 20  # there are 15 + 25 + 5 or so
    assert changed_order(1, rng).tolist() == [0]


def test_public_text_is_needed_for_want_of_a_language_model(rng: torch.Generator) -> None:
    texts = sentences(rng)
    model = transformer("causal", rng, decoder=True)
    seen = gradient_heard(model, texts, following(texts))

    assert Capability.PUBLIC_SAMPLE in LAMP().needs
    assert Capability.PUBLIC_SAMPLE not in LAMP(prior=by_order).needs
    with pytest.raises(AttackFailed, match="public-sample"):
        LAMP(starts=1)(seen, known_of(model, "causal"), rng=rng)
