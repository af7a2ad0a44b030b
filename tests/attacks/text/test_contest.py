"""What `auto`, `adaptive` and `dlg` do where clients train on text."""

import pytest
import torch

from attacks.adaptive import Adaptive
from attacks.auto import Auto
from attacks.dlg import DLG
from attacks.inverting_gradients import InvertingGradients
from attacks.observation import AttackFailed, Budget, Kind, Knowledge, Observation, Reconstruction
from attacks.text.contest import distance_of, worth_trying
from attacks.text.language import cross_entropy
from tests.attacks.text.sentences import examples, model_for, sentences, tokens


def overheard(number: int = 1) -> tuple[Observation, Knowledge, torch.Tensor]:
    """A gradient of BERT, what is known, and the sentences behind it."""
    of = tokens("masked")
    model, texts = model_for(of, 10), sentences(number, 10, of)
    inputs, labels = examples(texts, of)
    named = dict(model.named_parameters())
    slopes = torch.autograd.grad(cross_entropy(model(inputs), labels), list(named.values()))
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=dict(zip(named, slopes, strict=True)),
        weights={name: one.detach().clone() for name, one in named.items()},
        num_examples=number,
    )
    known = Knowledge(
        model=model_for(of, 10, seed=9),
        loss=cross_entropy,
        input_shape=(10,),
        num_classes=of.vocabulary_size,
        batch_size=number,
        tokens=of,
    )
    return seen, known, texts


@pytest.mark.parametrize("attack", [Auto(), Adaptive(), DLG()], ids=lambda one: type(one).__name__)
def test_text_is_read_by_attacks_that_are_named_alike_for_images(
    attack: Auto | Adaptive | DLG, rng: torch.Generator
) -> None:
    seen, known, texts = overheard()

    attack.check(known)
    found = attack(seen, known, rng=rng, budget=Budget(60.0))

    assert found.inputs is not None
    assert found.inputs.tolist() == texts.tolist()
    assert found.certified is not None
    assert found.certified.all()


def test_several_victims_are_read_one_after_the_other(rng: torch.Generator) -> None:
    seen, known, texts = overheard()
    nothing = Observation(
        round=1, sender="client-1", receiver="server", kind=Kind.SIZES_ONLY, update={}
    )

    read, failed = DLG().many(
        [seen, nothing], [known, known], rngs=[rng, torch.Generator()], budget=Budget(60.0)
    )

    assert isinstance(read, Reconstruction)
    assert read.inputs is not None
    assert read.inputs.tolist() == texts.tolist()
    assert isinstance(failed, AttackFailed)


def test_the_notes_tell_what_was_tried(rng: torch.Generator) -> None:
    seen, known, _ = overheard(2)

    found = Auto()(seen, known, rng=rng)

    assert found.notes["chosen"] == "dager"
    assert "2 proved" in str(found.notes["tried"])
    assert distance_of(found) <= 1e-4


def test_guesses_are_judged_by_the_gradient_of_their_tokens_and_by_nothing_else() -> None:
    tokens = torch.zeros(1, 10, dtype=torch.int64)
    fits_spans = Reconstruction(inputs=tokens, labels=None, matching_loss=-3.0)
    fits_gradient = Reconstruction(
        inputs=tokens, labels=None, matching_loss=0.5, notes={"tokens_distance": 0.07}
    )

    assert distance_of(fits_gradient) < distance_of(fits_spans)


def test_what_is_tried_depends_on_what_is_known() -> None:
    _, known, _ = overheard()
    public = Knowledge(public_sample=torch.zeros(3, 10, dtype=torch.int64))

    assert list(worth_trying(known, damaged=False)) == ["dager", "tag", "dlg-text"]
    assert list(worth_trying(known, damaged=True)) == ["dager", "tiger", "tag", "dlg-text"]
    assert "lamp" in worth_trying(public, damaged=False)
    assert "dlg-text" not in worth_trying(Knowledge(length_known=False), damaged=True)


def test_an_attack_on_numbers_is_refused_for_text() -> None:
    _, known, _ = overheard()

    with pytest.raises(AttackFailed, match="clients train on text"):
        InvertingGradients().check(known)
