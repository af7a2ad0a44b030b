"""The published optimiser of DLG, against PyTorch's L-BFGS called by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.dlg_published import PublishedDLG
from attacks.observation import Attack, AttackFailed, Budget

from .overhearing import overhear


def test_one_image_and_its_label_come_out_of_one_gradient(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    found = PublishedDLG()(*overhear(model, blurred, [4]), rng=rng)

    assert isinstance(PublishedDLG(), Attack)
    assert found.labels is not None
    assert found.labels.tolist() == [4]
    assert found.inputs is not None
    assert float((found.inputs - blurred).square().mean()) < 1e-3  # a random guess: 0.1


def test_its_first_steps_are_those_of_pytorchs_optimiser(model: nn.Module, blurred: Tensor) -> None:
    seen, known = overhear(model, blurred, [4])
    rng = torch.Generator().manual_seed(5)
    guess = torch.randn(blurred.shape, generator=rng, dtype=torch.float64).float().requires_grad_()
    logits = torch.randn(1, 10, generator=rng).requires_grad_()
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.LBFGS([guess, logits], lr=1.0, max_iter=20, history_size=100)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = functional.cross_entropy(model(guess), logits.softmax(dim=-1))
        given = torch.autograd.grad(loss, list(parameters.values()), create_graph=True)
        apart = [
            (one - seen.update[name]).square().sum()
            for name, one in zip(parameters, given, strict=True)
        ]
        distance = torch.stack(apart).sum()
        distance.backward(inputs=[guess, logits])  # type: ignore[no-untyped-call]
        return distance

    for _ in range(2):
        optimizer.step(closure)  # type: ignore[no-untyped-call]

    rng = torch.Generator().manual_seed(5)
    found = PublishedDLG(steps=2, restarts=1, tolerance=0.0)(seen, known, rng=rng)

    assert found.inputs is not None
    torch.testing.assert_close(found.inputs, guess.detach().clamp(0, 1), atol=1e-4, rtol=1e-3)


def test_what_diverges_starts_anew_and_the_closest_of_several_starts_is_returned(
    model: nn.Module, blurred: Tensor
) -> None:
    seen, known = overhear(model, blurred, [4])
    losses = []
    for restarts in (1, 4):
        rng = torch.Generator().manual_seed(1)
        found = PublishedDLG(steps=1, restarts=restarts, close=0.0)(seen, known, rng=rng)
        assert found.matching_loss is not None
        losses.append(found.matching_loss)
        assert found.notes["starts"] == restarts

    assert losses[1] <= losses[0]


def test_a_start_that_comes_close_is_the_last(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    found = PublishedDLG(steps=1, restarts=4, close=1e6)(*overhear(model, blurred, [4]), rng=rng)

    assert found.notes["starts"] == 1


def test_a_spent_budget_ends_it_after_a_step(
    model: nn.Module, blurred: Tensor, rng: torch.Generator
) -> None:
    found = PublishedDLG()(*overhear(model, blurred, [4]), rng=rng, budget=Budget(0.0))

    assert found.steps == 1
    assert not found.finished


def test_settings_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="steps must be at least 1"):
        PublishedDLG(steps=0)


def test_a_network_without_a_second_derivative_is_refused(
    blurred: Tensor, rng: torch.Generator
) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(blurred[0].numel(), 10))
    seen, known = overhear(model, blurred, [4])
    frozen = {name: torch.zeros_like(one) for name, one in seen.update.items()}

    with pytest.raises(AttackFailed):
        PublishedDLG()(type(seen)(**{**seen.__dict__, "update": frozen}), known, rng=rng)
