"""What an attack does is counted: closures, waits for a device, operations.

Bounds are a little above what was counted when they were set; lower them when the work gets less.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.closed_form import ClosedForm
from attacks.convolution_maps import Maps
from attacks.dlg import DLG
from attacks.idlg import IDLG
from attacks.inverting_gradients import InvertingGradients
from attacks.matching.distances import SquaredDistances
from attacks.observation import AttackFailed, Kind, Knowledge, ManyAtOnce, Observation
from fedsim.models.build import build_model
from tests.counted_work.counting import Counted


def clouds(number: int, side: int) -> Tensor:
    """Return smooth pictures, always the same, (number, 3, side, side)."""
    coarse = torch.rand(number, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    return functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)


def heard(number: int, name: str, side: int) -> tuple[list[Observation], list[Knowledge]]:
    """Return the gradients of single pictures at one untrained model."""
    rng = torch.Generator().manual_seed(0)
    options: dict[str, object] = {"width": 8} if name == "convnet" else {}
    model: nn.Module = build_model(name, (3, side, side), 10, rng=rng, options=options).eval()
    named = dict(model.named_parameters())
    seen = []
    for place, image in enumerate(clouds(number, side)):
        loss = functional.cross_entropy(model(image[None]), torch.tensor([place % 10]))
        gradient = torch.autograd.grad(loss, list(named.values()))
        seen.append(
            Observation(
                round=1,
                sender=f"client-{place}",
                receiver="server",
                kind=Kind.GRADIENT,
                update=dict(zip(named, gradient, strict=True)),
                weights={key: p.detach() for key, p in named.items()},
                buffers=dict(model.named_buffers()),
                num_examples=1,
            )
        )
    known = Knowledge(model=model, input_shape=(3, side, side), num_classes=10, batch_size=1)
    return seen, [known] * number


def guess(attack: ManyAtOnce, number: int, name: str = "dlg-lenet", side: int = 16) -> None:
    """Attack several victims together; all must be guessed."""
    seen, known = heard(number, name, side)
    rngs = [torch.Generator().manual_seed(place) for place in range(number)]
    guesses = attack.many(seen, known, rngs=rngs)
    assert not any(isinstance(guess, AttackFailed) for guess in guesses), guesses


def count(attack: ManyAtOnce, number: int, name: str = "dlg-lenet") -> Counted:
    """Do the same, and count operations."""
    counted = Counted()
    with counted:
        guess(attack, number, name)
    return counted


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[type, str], list[int]]:
    """Return a function that starts counting the calls of a method: the rows of each."""

    def start(of: type, method: str) -> list[int]:
        rows: list[int] = []
        original = getattr(of, method)

        def counting(self: object, points: Tensor, *others: object) -> object:
            rows.append(len(points))
            return original(self, points, *others)

        monkeypatch.setattr(of, method, counting)
        return rows

    return start


def test_the_closed_form_of_sixteen_victims_takes_hardly_more_operations_than_that_of_eight() -> (
    None
):
    eight, sixteen = (count(ClosedForm(), number) for number in (8, 16))

    assert eight.total <= 6_200  # 5,466 when set
    assert sixteen.total - eight.total <= 8 * 175  # 154 a victim when set: reading, and judging
    assert eight.waits <= 140  # 127 when set
    assert sixteen.waits - eight.waits <= 8 * 11  # 10 a victim when set: comparing weights


def test_conjugate_gradients_leave_victims_behind_that_are_done(
    calls: Callable[[type, str], list[int]],
) -> None:
    # given: strided layers that tell too little of their inputs, on images of 32 x 32
    steps = calls(Maps, "forward_planes")

    guess(ClosedForm(), 8, side=32)

    assert len(steps) <= 110  # 90 when set
    assert (
        sum(steps) <= 1_450
    )  # 1,270 when set: the real and the made-up one of eight, thinning out


# 225 and 306 when set
@pytest.mark.parametrize(("attack", "most"), [(IDLG(), 290), (DLG(), 400)])
def test_a_search_takes_few_closures(
    attack: IDLG | DLG, most: int, calls: Callable[[type, str], list[int]]
) -> None:
    rows = calls(SquaredDistances, "__call__")

    guess(attack, 4)

    assert len(rows) <= most
    assert sum(rows) <= 4 * most  # rows that are done leave


def test_not_every_step_of_inverting_gradients_waits() -> None:
    short, longer = (count(InvertingGradients(steps=steps), 1, "convnet") for steps in (10, 40))

    assert longer.waits - short.waits < 30  # snapshots alone wait
    assert longer.total - short.total <= 30 * 1_500  # 1,380 a step when set
