import pytest
import torch
from torch import Tensor

from attacks.text.tag import TAG, squared_and_absolute
from attacks.text.victim import rebuild_text

from .overheard_texts import following, gradient_heard, known_of, sentences, transformer


@pytest.mark.parametrize("layers", ["linear", "even"])
def test_a_sentence_is_read_off_a_causal_model(layers: str, rng: torch.Generator) -> None:
    texts = sentences(rng)
    model = transformer("causal", rng, decoder=True)
    seen = gradient_heard(model, texts, following(texts))

    found = TAG(layers=layers)(seen, known_of(model, "causal"), rng=rng)  # type: ignore[arg-type]

    assert found.inputs is not None
    assert found.inputs.tolist() == texts.tolist()


def test_the_distance_is_squared_and_absolute_with_less_weight_on_later_tensors(
    rng: torch.Generator,
) -> None:
    texts = sentences(rng)
    model = transformer("causal", rng, decoder=True)
    seen = gradient_heard(model, texts, following(texts))
    victim = rebuild_text(seen, known_of(model, "causal"))
    names = list(victim.target)

    def apart(moved: str, falling: bool) -> Tensor:
        found = {**victim.target, moved: victim.target[moved] + 2}
        return squared_and_absolute(found, victim, absolute_weight=0.5, falling=falling)

    size = victim.target[names[0]].numel()
    torch.testing.assert_close(apart(names[0], True), torch.tensor((4 + 0.5 * 2) * size))
    last = victim.target[names[-1]].numel()
    torch.testing.assert_close(apart(names[-1], True), torch.tensor(5.0 * last / len(names)))
    torch.testing.assert_close(apart(names[-1], False), torch.tensor(5.0 * last))


def test_steps_get_smaller() -> None:
    attack = TAG(steps=10)

    assert [attack.rate(step) for step in (0, 5, 10)] == [1.0, 0.5, 0.0]
    assert TAG(steps=0).rate(0) == 1.0
