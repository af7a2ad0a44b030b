"""What an optimizer's points stand for in a search by squared distance, and their worth.

And the two ways to minimize: over all examples of a batch at once, or one after the other.
"""

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn import functional

from attacks.matching.company import Company
from attacks.matching.coordinates import Coordinates
from attacks.matching.distances import SquaredDistances
from attacks.matching.effort import Effort
from attacks.matching.lbfgs import IndexedValueAndGrad, Minimum, OnStep, minimize
from attacks.observation import Budget

_PROGRESS = 1e-3
"""The least relative decrease over two turns of every example."""


class Problem:
    """What the points of an optimizer stand for, and what they are worth.

    A point is one row: the coordinates of B inputs, then B * K logits if labels are sought.

    Args:
        company: The victims.
        owners: For each row, the place of its victim.
        labels: For each row its labels, (R, B); None when they are sought.
        effort: How to search.
    """

    def __init__(
        self, company: Company, owners: Tensor, labels: Tensor | None, effort: Effort
    ) -> None:
        first = company.first
        self.company, self.owners, self.labels, self.effort = company, owners, labels, effort
        self.coordinates = Coordinates(
            first.input_shape, first.input_range, like=first.like, natural=effort.natural
        )
        self.num_inputs = first.batch_size * self.coordinates.size
        self.distances = SquaredDistances(company, self.decode, owners=owners, labels=labels)
        self.scales = company.square_norms[owners]

    def inputs_of(self, points: Tensor) -> Tensor:
        """Return the inputs at points (r, D), shape (r, B, ...)."""
        first = self.company.first
        inputs = self.coordinates.inputs(points[:, : self.num_inputs].flatten())
        return inputs.view(len(points), first.batch_size, *first.input_shape)

    def logits_of(self, points: Tensor) -> Tensor:
        """Return the logits of labels at points (r, D), shape (r, B, K)."""
        first = self.company.first
        return points[:, self.num_inputs :].reshape(len(points), first.batch_size, -1)

    def decode(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return inputs, and probabilities of labels if these are sought."""
        inputs = self.inputs_of(points)
        return inputs, self.logits_of(points).softmax(dim=-1) if self.labels is None else None

    def places_of(self, example: int) -> Tensor:
        """Return where the unknowns of one example of the batch are in a point, (d,) int64."""
        first, device = self.company.first, self.company.first.like.device
        size = self.coordinates.size
        places = torch.arange(example * size, (example + 1) * size, device=device)
        if self.labels is not None:
            return places
        logits = torch.arange(first.num_classes, device=device)
        return torch.cat((places, self.num_inputs + example * first.num_classes + logits))

    def part(self, points: Tensor, rows: Tensor, places: Tensor) -> IndexedValueAndGrad:
        """Return the same problem for some `places` of the points of `rows`, the rest held."""
        held = points[rows]

        def evaluate(some: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
            whole = held[numbers]
            whole[:, places] = some
            values, slopes = self(whole, rows[numbers])
            return values, slopes[:, places]

        return evaluate

    def __call__(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return values (r,) and gradients (r, D) of the points of `rows`."""
        values, slopes = self.distances(points, rows)
        effort = self.effort
        if effort.box or (effort.label_weight and self.labels is not None):
            with torch.enable_grad():
                points = points.detach().requires_grad_()
                extra = self._extra(points, rows)
                (more,) = torch.autograd.grad(extra.sum(), points)
            values, slopes = values + extra.detach(), slopes + more
        return values, slopes

    def _extra(self, points: Tensor, rows: Tensor) -> Tensor:
        inputs, effort = self.inputs_of(points), self.effort
        total = points.new_zeros(len(points))
        if effort.box:
            low, high = self.company.first.input_range
            outside = (inputs - inputs.clamp(low, high)) / (high - low)
            share = outside.flatten(1).square().mean(dim=1)
            total = total + effort.box * self.scales[rows] * share
        if effort.label_weight and self.labels is not None:
            said = self._said(inputs, rows)
            wanted = functional.one_hot(self.labels[rows], said.shape[-1]).to(said)
            total = total + effort.label_weight * (said - wanted).square().sum(dim=(1, 2))
        return total

    def _said(self, inputs: Tensor, rows: Tensor) -> Tensor:
        """Return the probabilities that each row's model gives its inputs, (r, B, K)."""
        model = self.company.first.model
        weights = {name: t[self.owners[rows]] for name, t in self.company.weights.items()}

        def one(inputs: Tensor, weights: dict[str, Tensor]) -> Tensor:
            logits: Tensor = functional_call(model, weights, (inputs,))
            return logits.softmax(dim=-1)

        if len(inputs) == 1:
            return one(inputs[0], {name: t[0] for name, t in weights.items()})[None]
        found: Tensor = vmap(one)(inputs, weights)
        return found


def all_at_once(
    problem: Problem,
    start: Tensor,
    *,
    limits: Tensor,
    budget: Budget | None,
    on_step: OnStep,
) -> Minimum:
    """Minimize over all examples of each batch together."""
    return minimize(
        problem,
        start,
        steps=problem.effort.steps,
        history=problem.effort.history,
        tolerance=limits,
        budget=budget,
        on_step=on_step,
        groups=problem.owners,
        indexed=True,
    )


def in_turns(
    problem: Problem,
    start: Tensor,
    *,
    limits: Tensor,
    budget: Budget | None,
    on_step: OnStep,
) -> Minimum:
    """Minimize over one example of each batch after the other, again and again.

    A row leaves when its victim is solved, or when all examples had two turns in vain.
    """
    effort, batch_size = problem.effort, problem.company.first.batch_size
    points = start.clone()
    rows = torch.arange(len(start), device=start.device)
    values, _ = problem(points, rows)
    values = values.nan_to_num(torch.inf)
    row_steps = torch.zeros_like(rows)
    earlier, evaluations, turn, taken, finished = values.clone(), len(rows), 0, 0, True
    on_step(0, points, values)
    while taken < effort.steps and finished:
        some = problem.places_of(turn % batch_size)
        found = minimize(
            problem.part(points, rows, some),
            points[rows][:, some],
            steps=min(effort.turns, effort.steps - taken),
            history=effort.history,
            tolerance=limits[rows],
            budget=budget,
            groups=problem.owners[rows],
            indexed=True,
        )
        points = points.clone()
        points[rows[:, None], some] = found.points
        values = values.index_copy(0, rows, found.values)
        row_steps[rows] += found.row_steps
        evaluations, finished = evaluations + found.evaluations, found.finished
        taken, turn = taken + max(found.steps, 1), turn + 1
        on_step(taken, points, values)
        solved = problem.owners[values <= limits]
        stay = ~torch.isin(problem.owners[rows], solved) & values[rows].isfinite()
        if turn % (2 * batch_size) == 0:
            stay = stay & (values[rows] < earlier[rows] * (1 - _PROGRESS))
            earlier = values
        rows = rows[stay]
        if len(rows) == 0:
            break
    return Minimum(
        points=points,
        values=values,
        steps=taken,
        row_steps=row_steps,
        evaluations=evaluations,
        finished=finished,
    )
