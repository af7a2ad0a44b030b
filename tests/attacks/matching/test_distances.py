from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from attacks.matching.chains import Thin
from attacks.matching.company import Company, company_of
from attacks.matching.distances import SquaredDistances, Way, _beyond, _factors
from attacks.matching.victim import rebuild

from .conftest import Overhear


@pytest.fixture(params=["one round", "different rounds"])
def company(
    request: pytest.FixtureRequest, net: nn.Module, overhear: Overhear, rng: torch.Generator
) -> Company:
    """Three victims of two examples each; of the second, half of one tensor was heard."""
    victims = []
    for _ in range(3):
        inputs = torch.rand(2, 1, 4, 4, generator=rng)
        if request.param == "different rounds":
            for parameter in net.parameters():
                parameter.data = torch.rand(parameter.shape, generator=rng) - 0.5
        victims.append(rebuild(*overhear(net, inputs, torch.tensor([0, 2])), dtype=torch.float64))
    mask = (torch.rand(4, 1, 3, 3, generator=rng) < 0.5).double()
    target = {**victims[1].target, "0.weight": victims[1].target["0.weight"] * mask}
    victims[1] = replace(victims[1], target=target, visible={"0.weight": mask})
    return company_of(victims)


def joint(points: Tensor) -> tuple[Tensor, Tensor | None]:
    inputs = points[:, :32].view(-1, 2, 1, 4, 4)
    return inputs, points[:, 32:].reshape(-1, 2, 3).softmax(dim=-1)


def inputs_alone(points: Tensor) -> tuple[Tensor, Tensor | None]:
    return points.view(-1, 2, 1, 4, 4), None


@pytest.mark.parametrize("way", ["chain", "forward"])
@pytest.mark.parametrize("labels", ["sought", "known"])
def test_every_way_gives_the_same(
    way: Way, labels: str, company: Company, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SquaredDistances, "_pays", staticmethod(lambda _: True))
    owners = torch.tensor([2, 0, 1, 1, 0])
    told = torch.randint(3, (5, 2), generator=rng) if labels == "known" else None
    decode, size = (joint, 38) if told is None else (inputs_alone, 32)
    points = torch.rand(4, size, generator=rng, dtype=torch.float64)
    rows = torch.tensor([4, 3, 0, 2])
    generic = SquaredDistances(company, decode, owners=owners, labels=told, way="generic")

    distances = SquaredDistances(company, decode, owners=owners, labels=told, way=way)
    values, slopes = distances(points, rows)

    assert distances.way == way
    expected = generic(points, rows)
    torch.testing.assert_close(values, expected[0])
    torch.testing.assert_close(slopes, expected[1])


def test_chains_are_computed_by_hand_unless_told_otherwise(company: Company) -> None:
    owners = torch.arange(3)

    assert SquaredDistances(company, joint, owners=owners, labels=None).way == "chain"


def test_rows_that_do_not_fit_into_memory_are_computed_in_parts(
    company: Company, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    distances = SquaredDistances(company, joint, owners=torch.tensor([0, 1, 2] * 3), labels=None)
    points = torch.rand(9, 38, generator=rng, dtype=torch.float64)
    expected = distances(points)
    inner, sizes = distances._by_chain, []

    def little_memory(chain: object, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        sizes.append(len(points))
        if len(points) > 2:
            raise torch.OutOfMemoryError("no")
        return inner(chain, points, rows)  # type: ignore[arg-type]

    monkeypatch.setattr(distances, "_by_chain", little_memory)

    values, slopes = distances(points)

    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    torch.testing.assert_close(values, expected[0])
    torch.testing.assert_close(slopes, expected[1])


@pytest.fixture
def lone(net: nn.Module, overhear: Overhear, rng: torch.Generator) -> Company:
    """Three victims of one example each."""
    inputs = torch.rand(3, 1, 1, 4, 4, generator=rng)
    return company_of(
        [
            rebuild(*overhear(net, one, torch.tensor([label])), dtype=torch.float64)
            for label, one in enumerate(inputs)
        ]
    )


def one_joint(points: Tensor) -> tuple[Tensor, Tensor | None]:
    return points[:, :16].view(-1, 1, 1, 4, 4), points[:, 16:].reshape(-1, 1, 3).softmax(dim=-1)


def test_matrices_of_one_example_are_compared_as_two_vectors(
    lone: Company, rng: torch.Generator
) -> None:
    owners = torch.arange(3)
    points = torch.rand(3, 19, generator=rng, dtype=torch.float64)

    distances = SquaredDistances(lone, one_joint, owners=owners, labels=None)
    found = distances(points)

    assert distances.chain is not None
    assert distances.lone.keys() == distances.chain.dense.keys()
    whole = SquaredDistances(lone, one_joint, owners=owners, labels=None, way="generic")(points)
    torch.testing.assert_close(found, whole, rtol=1e-6, atol=0)  # gradients are heard in float32


def test_a_matrix_that_was_noised_is_compared_as_it_is(lone: Company, rng: torch.Generator) -> None:
    victims = list(lone.victims)
    noised = {
        name: t + 1e-4 * torch.randn(t.shape, generator=rng, dtype=t.dtype)
        for name, t in victims[1].target.items()
    }
    victims[1] = replace(victims[1], target=noised)
    company = company_of(victims)
    owners = torch.arange(3)
    points = torch.rand(3, 19, generator=rng, dtype=torch.float64)

    distances = SquaredDistances(company, one_joint, owners=owners, labels=None)

    assert distances.lone == {}
    whole = SquaredDistances(company, one_joint, owners=owners, labels=None, way="generic")
    torch.testing.assert_close(distances(points), whole(points))


def test_two_vectors_tell_small_distances_exactly(rng: torch.Generator) -> None:
    left, right = torch.randn(1, 20, generator=rng), torch.randn(1, 30, generator=rng)
    heard = _factors(left.mT @ right)
    assert heard is not None
    near = Thin(left[None] * (1 + 1e-5), right[None] + 1e-5)

    value, _ = _beyond(near, Thin(heard[0][None], heard[1][None]))

    exact = near.left.double().mT @ near.right.double() - left.double().mT @ right.double()
    # float32 carries 7 digits, of which the guess shares 5 with what was heard; squares none
    torch.testing.assert_close(value.double(), exact.square().sum()[None], rtol=0.1, atol=0)
