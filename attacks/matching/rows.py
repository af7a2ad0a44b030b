"""Value and gradient of several guesses, at the same victim or at several.

A row is one guess at one victim. An optimizer (`attacks.matching.lbfgs`,
`attacks.matching.descent`) moves R rows at once; the objective says what one of them is worth:

    together = company_of(victims)                       # V victims; see `attacks.matching.company`

    def objective(guess: Tensor, row: Row) -> Tensor:
        return squared_distance(row.gradient(guess, row.labels), row.target)

    rows = rows_of(objective, together, owners=owners, labels=labels)   # row -> victim, its labels
    values, slopes = rows(guesses)                       # all R rows: `descend(rows, ...)`
    values, slopes = rows(guesses[some], some)           # some of them, by number: `minimize(rows)`

Whatever differs from row to row goes through `Row`: the gradient heard, the mask of what was heard
and the weights in force by themselves, the labels, and more by name in `own`. `by_rows` is the
short form for one victim, whose objective closes over what it needs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from attacks.matching.company import Company, company_of
from attacks.matching.victim import Victim
from attacks.observation import Tensors

GradientOf = Callable[[Tensor, Tensor], dict[str, Tensor]]
"""(inputs (B, ...), targets) -> gradient by parameter name: one of the two that `Victim` has."""

Objective = Callable[[Tensor, GradientOf], Tensor]
"""(one guess, how to compute its gradient) -> scalar, lower is better."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """What belongs to one guess.

    Attributes:
        gradient: The gradient that its victim would give on (inputs (B, ...), targets).
        target: The gradient heard from its victim, by parameter name.
        labels: (B,) int64 or (B, K) probabilities; None when no labels were given.
        own: Whatever else was given row by row.
    """

    gradient: GradientOf
    target: Tensors
    labels: Tensor | None = None
    own: Tensors = field(default_factory=dict)


RowObjective = Callable[[Tensor, Row], Tensor]
"""(one guess, what belongs to it) -> scalar, lower is better."""

_TOGETHER_FROM = 4


class Rows:
    """Guesses (r, ...) -> values (r,) and gradients (r, ...); see the module and `rows_of`."""

    def __init__(
        self,
        objective: RowObjective,
        company: Company,
        owners: Tensor,
        own: Mapping[str, Tensor],
        labels: Tensor | None,
    ) -> None:
        self.objective = objective
        self.company = company
        self.owners = owners.to(company.first.like.device)
        self._owner_of: list[int] = owners.tolist()  # so that no step waits for the device
        self.own = own
        self.labels = labels
        self._limit: int | None = None

    def __call__(self, guesses: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate guesses (r, ...), one per row named in `rows`, (r,) int64; None for all."""
        limit = self._limit or len(guesses)
        found: list[tuple[Tensor, Tensor]] = []
        done = 0
        while done < len(guesses):
            some = slice(done, done + limit)
            if rows is None:
                numbers = torch.arange(done, min(some.stop, len(guesses)), device=guesses.device)
            else:
                numbers = rows[some]
            try:
                if self._pays(guesses):
                    found.append(self._together(guesses[some].detach(), numbers))
                else:
                    names = range(done, done + len(numbers)) if rows is None else numbers.tolist()
                    found.append(self._apart(guesses[some].detach(), names))
            except torch.OutOfMemoryError:
                limit = min(limit, len(guesses) - done) // 2
                if limit == 0:
                    raise
                self._limit = limit
                continue
            done += limit
        values, slopes = zip(*found, strict=True)
        return torch.cat(values), torch.cat(slopes)

    def _pays(self, guesses: Tensor) -> bool:
        """Whether rows are computed faster together; a rule, so that equal seeds give equal bits.

        On one CPU core, `vmap` over eight guesses at a LeNet takes half the time of a loop in
        single precision, but is slower than the loop in double precision, and for two guesses.
        """
        if guesses.is_cuda:
            return len(guesses) > 1
        return len(guesses) >= _TOGETHER_FROM and guesses.dtype == torch.float32

    def _apart(self, guesses: Tensor, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        values, slopes = [], []
        for place, number in enumerate(numbers):
            victim = self.company.victims[self._owner_of[number]]
            row = Row(
                gradient=victim.gradient,
                target=victim.target,
                labels=None if self.labels is None else self.labels[number],
                own={name: tensor[number] for name, tensor in self.own.items()},
            )
            guess = guesses[place].requires_grad_()
            value = self.objective(guess, row)
            (slope,) = torch.autograd.grad(value, guess)
            values.append(value.detach())
            slopes.append(slope)
        return torch.stack(values), torch.stack(slopes)

    def _together(self, guesses: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        owners, company = self.owners[numbers], self.company
        single = len(company.victims) == 1
        dim = None if single else 0

        def pick(tensors: Tensors) -> dict[str, Tensor]:
            return {name: t[0] if single else t[owners] for name, t in tensors.items()}

        given = (
            pick(company.targets),
            pick(company.visible),
            pick(company.weights),
        )
        mine = {name: tensor[numbers] for name, tensor in self.own.items()}
        labels = None if self.labels is None else self.labels[numbers]

        def value(
            guess: Tensor,
            given: tuple[Tensors, Tensors, dict[str, Tensor]],
            labels: Tensor | None,
            mine: Tensors,
        ) -> Tensor:
            target, visible, weights = given
            gradient = _Gradient(replace(company.first, target=target, visible=visible))
            row = Row(
                gradient=lambda inputs, targets: gradient.of(weights, inputs, targets),
                target=target,
                labels=labels,
                own=mine,
            )
            return self.objective(guess, row)

        of_rows = vmap(grad_and_value(value), in_dims=(0, dim, None if labels is None else 0, 0))
        slopes, values = of_rows(guesses, given, labels, mine)
        return values, slopes


def rows_of(
    objective: RowObjective,
    company: Company,
    *,
    owners: Tensor | None = None,
    labels: Tensor | None = None,
    own: Mapping[str, Tensor] | None = None,
) -> Rows:
    """Return the function from guesses to values and gradients, row by row.

    Rows are computed together where that is faster, and one after the other where it is not. If
    the memory does not suffice for all of them, they are computed in parts.

    Args:
        objective: What one guess is worth. It must run inside the transforms of `torch.func`.
        company: The victims.
        owners: For each row, the place of its victim in the company, (R,) int64; None for one
            row per victim, in order.
        labels: For each row, its labels, (R, B) int64 or (R, B, K) probabilities.
        own: What else the objective needs, row by row: tensors (R, ...), by name.
    """
    if owners is None:
        owners = torch.arange(len(company.victims))
    return Rows(objective, company, owners, own or {}, labels)


def by_rows(objective: Objective, victim: Victim) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the function from guesses (r, ...) to values (r,) and gradients (r, ...).

    The guesses are all at one victim, and nothing else differs between them.
    """
    rows = rows_of(lambda guess, row: objective(guess, row.gradient), company_of([victim]))

    def evaluate(guesses: Tensor) -> tuple[Tensor, Tensor]:
        return rows(guesses, torch.zeros(len(guesses), dtype=torch.int64, device=guesses.device))

    return evaluate


class _Gradient(nn.Module):
    """A victim's gradient as a module, so that `functional_call` can put other weights into it."""

    def __init__(self, victim: Victim) -> None:
        super().__init__()
        self.model = victim.model
        self._victim = victim

    def forward(self, inputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Return the gradient with the weights that the model has at the moment."""
        return self._victim.functional_gradient(inputs, targets)

    def of(
        self, weights: Mapping[str, Tensor], inputs: Tensor, targets: Tensor
    ) -> dict[str, Tensor]:
        """Return the gradient with `weights`, or with those in force when there are none."""
        named = {f"model.{name}": tensor for name, tensor in weights.items()}
        found: dict[str, Tensor] = functional_call(self, named, (inputs, targets))
        return found
