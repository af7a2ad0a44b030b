"""How far the gradients of many guesses at one batch of rows are from the one heard. No paper."""

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor
from torch.nn import functional

from attacks.matching.chains import Thin, chain_of
from attacks.matching.company import company_of
from attacks.matching.rows import Row, rows_of
from attacks.matching.victim import Victim
from attacks.tabular.columns import Columns
from attacks.tabular.relaxation import relaxed
from attacks.tabular.whitening import Whitening


class Matching:
    """Points (R, B * D) -> cosine distances (R,) of their gradients to the one heard, and slopes.

    A point is the unbounded coordinates of B rows (`attacks.tabular.relaxation`), and, where
    labels are sought, B * K logits of labels behind them. Chains of layers with formulas are
    computed by hand for all points together (`attacks.matching.chains`), others by two passes back.

    Args:
        victim: Whose gradient to match.
        columns: What the D coordinates stand for.
        labels: Shape (B,), int64; None to search for them.
        whitening: The coordinates that gradients are compared in.
    """

    def __init__(
        self, victim: Victim, columns: Columns, labels: Tensor | None, whitening: Whitening
    ) -> None:
        self.victim = victim
        self.columns = columns
        self.labels = labels
        self.whitening = whitening
        target = whitening(victim.target)
        self.direction = target / target.norm()
        self.num_inputs = victim.batch_size * columns.width
        self.chain = chain_of(victim) if victim.num_steps == 1 else None
        if self.chain is not None:
            named = victim.model.named_parameters()
            self.weights = self.chain.lay_out({name: p.detach()[None] for name, p in named})
        self.rows = rows_of(self._of_one, company_of([victim]))

    @property
    def size(self) -> int:
        """Coordinates of a point."""
        sought = 0 if self.labels is not None else self.victim.batch_size * self.victim.num_classes
        return self.num_inputs + sought

    def inputs_of(self, points: Tensor) -> Tensor:
        """Return the relaxed rows at points (..., size), shape (..., B, D)."""
        shape = (*points.shape[:-1], self.victim.batch_size, self.columns.width)
        return relaxed(points[..., : self.num_inputs].reshape(shape), self.columns)

    def chances_of(self, points: Tensor) -> Tensor:
        """Return the chances of labels at points (..., size), shape (..., B, K)."""
        shape = (*points.shape[:-1], self.victim.batch_size, self.victim.num_classes)
        if self.labels is None:
            return points[..., self.num_inputs :].reshape(shape).softmax(dim=-1)
        told = functional.one_hot(self.labels, self.victim.num_classes)
        return told.to(points).expand(shape)

    def __call__(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (R,) and slopes (R, size) of points (R, size)."""
        if self.chain is None:
            return self.rows(points, torch.zeros(len(points), dtype=torch.int64).to(points.device))
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            inputs, chances = self.inputs_of(points), self.chances_of(points)
            entered = self.chain.enter(inputs)
        with torch.no_grad():
            values, by_input, by_chance = self.chain.value_and_slopes(
                entered.detach(), chances.detach(), self.weights, self._compare
            )
        outputs, pulls = [entered], [by_input.reshape(entered.shape)]
        if self.labels is None:
            outputs.append(chances)
            pulls.append(by_chance)
        (slopes,) = torch.autograd.grad(outputs, points, pulls)
        return values, slopes

    def value_of(self, inputs: Tensor, chances: Tensor) -> float:
        """Return the distance of one batch: rows (B, D), and chances of labels (B, K)."""
        gradient = self.victim.gradient(inputs, chances)
        return float(self._distance(gradient).detach())

    def _compare(
        self, gradients: dict[str, Tensor | Thin]
    ) -> tuple[Tensor, dict[str, Tensor | Thin]]:
        names = list(self.victim.target)
        with torch.enable_grad():
            leaves = {n: cast(Tensor, gradients[n]).detach().requires_grad_() for n in names}
            values = self._distance(leaves)
            pushes = torch.autograd.grad(values.sum(), [leaves[name] for name in names])
        return values.detach(), dict(zip(names, pushes, strict=True))

    def _distance(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Return 1 - cos of the angle to the gradient heard, of gradients (..., shape) by name."""
        masked = {
            name: gradients[name] * self.victim.visible[name]
            if name in self.victim.visible
            else gradients[name]
            for name in self.victim.target
        }
        found = self.whitening(masked)
        length = torch.linalg.vector_norm(found, dim=-1).clamp_min(torch.finfo(found.dtype).tiny)
        cosine: Tensor = found @ self.direction / length
        return 1 - cosine

    def _of_one(self, point: Tensor, row: Row) -> Tensor:
        gradient = row.gradient(self.inputs_of(point), self.chances_of(point))
        return self._distance(gradient)
