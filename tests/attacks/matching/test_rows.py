import torch
from torch import Tensor, nn

from attacks.matching.objectives import squared_distance
from attacks.matching.rows import GradientOf, by_rows
from attacks.matching.victim import rebuild

from .conftest import Overhear


def test_rows_together_and_rows_apart_are_equal(
    net: nn.Module, image: Tensor, overhear: Overhear, rng: torch.Generator
) -> None:
    victim = rebuild(*overhear(net, image, torch.tensor([1])), dtype=torch.float32)
    sizes: list[int] = []

    def objective(guess: Tensor, gradient: GradientOf) -> Tensor:
        sizes.append(guess.dim())
        return squared_distance(gradient(guess, torch.tensor([1])), victim.target)

    value_and_grad = by_rows(objective, victim)
    guesses = torch.rand(8, *image.shape, generator=rng)

    values, slopes = value_and_grad(guesses)

    assert len(sizes) == 1  # one call for all eight
    for row in range(8):
        value, slope = value_and_grad(guesses[row : row + 1])
        torch.testing.assert_close(values[row], value[0])
        torch.testing.assert_close(slopes[row], slope[0], rtol=1e-4, atol=1e-6)


def test_the_slope_is_that_of_finite_differences(
    net: nn.Module, image: Tensor, overhear: Overhear, rng: torch.Generator
) -> None:
    victim = rebuild(*overhear(net, image, torch.tensor([1])), dtype=torch.float64)

    def objective(guess: Tensor, gradient: GradientOf) -> Tensor:
        return squared_distance(gradient(guess, torch.tensor([1])), victim.target)

    value_and_grad = by_rows(objective, victim)
    guess = torch.rand(1, *image.shape, generator=rng).double()
    along = torch.randn(guess.shape, generator=rng).double()

    ahead, behind = value_and_grad(guess + 1e-5 * along)[0], value_and_grad(guess - 1e-5 * along)[0]

    expected = (value_and_grad(guess)[1] * along).sum()
    torch.testing.assert_close((ahead - behind).squeeze() / 2e-5, expected)
