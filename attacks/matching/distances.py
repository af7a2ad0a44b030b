"""Squared distances of many guesses to the gradients heard, by the fastest way that is right.

    chain     the model is a chain of layers with formulas: `attacks.matching.chains`
    forward   forward-mode over reverse-mode derivatives of the loss, all rows in one `vmap`
    generic   two reverse passes, `attacks.matching.rows`: any victim, any device

The way is chosen by rule, not by the clock, so that equal seeds give equal bits.
"""

import warnings
from collections.abc import Callable
from typing import Literal, cast

import torch
from torch import Tensor
from torch.func import functional_call, grad, jvp, vmap
from torch.nn import functional

from attacks.matching.chains import Chain, Thin, chain_of
from attacks.matching.company import Company
from attacks.matching.objectives import squared_distance
from attacks.matching.rows import Row, rows_of
from attacks.observation import Tensors

Decode = Callable[[Tensor], tuple[Tensor, Tensor | None]]
"""Points (r, D) -> inputs (r, B, ...), and chances of labels (r, B, K) if these are sought."""

Way = Literal["chain", "forward", "generic"]

_CHUNK_BYTES = 32 * 2**20
"""On a CPU, what the patches of guesses computed together may take; half costs a tenth more."""
_ROUNDING = 3e-7
"""Share of a matrix that may be missing in a product of two vectors that stands for it."""
_FORWARD_FROM = 16
"""Rows from which it pays on a CPU, in single precision; the first use costs two seconds."""


class SquaredDistances:
    """Points (r, D) -> squared distances (r,) and their gradients (r, D).

    Args:
        company: The victims.
        decode: What a point stands for.
        owners: For each row, the place of its victim, (R,) int64.
        labels: For each row its labels, (R, B) int64; None when `decode` gives probabilities.
        way: How to compute; None for the fastest that is right.
    """

    def __init__(
        self,
        company: Company,
        decode: Decode,
        *,
        owners: Tensor,
        labels: Tensor | None,
        way: Way | None = None,
    ) -> None:
        self.company = company
        self.decode = decode
        first = company.first
        self.owners = owners.to(first.like.device)
        self.labels = labels
        one_step = first.num_steps == 1
        self.chain = chain_of(first) if one_step and way in (None, "chain") else None
        if self.chain is not None:
            self.way: Way = "chain"
            if company.weights:
                self.weights = self.chain.lay_out(company.weights)
            else:
                named = first.model.named_parameters()
                self.weights = self.chain.lay_out({name: p.detach()[None] for name, p in named})
        elif one_step and way != "generic":
            self.way = "forward"
        else:
            self.way = "generic"
        self.targets, self.visible = company.targets, company.visible
        self.lone: dict[str, Thin] = {}
        if self.chain is not None:
            self.lone = _lone_examples(self.chain, company)
            rest = {n: t for n, t in self.targets.items() if n not in self.lone}
            self.targets = self.chain.lay_out_gradients(rest)
            self.visible = self.chain.lay_out_gradients(self.visible)
        self.generic = rows_of(self._objective, company, owners=self.owners, labels=labels)
        self._limit: int | None = None

    def __call__(self, points: Tensor, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Evaluate points (r, D), one per row named in `rows`, (r,) int64; None for all."""
        if rows is None:
            rows = torch.arange(len(points), device=points.device)
        if self.way == "generic" or (self.way == "forward" and not self._pays(points)):
            return self.generic(points, rows)
        chain = self.chain
        if chain is None:
            compute = self._forward
        else:

            def compute(points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
                return self._by_chain(chain, points, rows)

        limit = self._limit or self._chunk(points)
        values, slopes, done = [], [], 0
        while done < len(points):
            some = slice(done, done + limit)
            try:
                value, slope = compute(points[some].detach(), rows[some])
            except torch.OutOfMemoryError:
                limit = min(limit, len(points) - done) // 2
                if limit == 0:
                    raise
                self._limit = limit
                continue
            values.append(value)
            slopes.append(slope)
            done += limit
        return torch.cat(values), torch.cat(slopes)

    @staticmethod
    def _pays(points: Tensor) -> bool:
        if points.is_cuda:
            return len(points) > 1
        return len(points) >= _FORWARD_FROM and points.dtype == torch.float32

    def _chunk(self, points: Tensor) -> int:
        if points.is_cuda or self.chain is None:
            return max(len(points), 1)
        formed = self.chain.width - sum(self.chain.dense[name] for name in self.lone)
        width = formed * self.company.first.batch_size * points.element_size()
        return max(1, _CHUNK_BYTES // width)

    def _objective(self, guess: Tensor, row: Row) -> Tensor:
        inputs, chances = self.decode(guess[None])
        targets = row.labels if chances is None else chances[0]
        return squared_distance(row.gradient(inputs[0], cast(Tensor, targets)), row.target)

    def _heard(self, rows: Tensor) -> Callable[[Tensors], Tensors]:
        """Return what picks the targets of rows from tensors (V, ...) by name."""
        owners = self.owners[rows]
        if len(self.company.victims) == 1:
            return lambda tensors: tensors
        if not owners.is_cuda:  # comparing would wait for the device
            place, count = int(owners[0]), len(owners)
            if torch.equal(owners, torch.arange(place, place + count)):
                near = slice(place, place + count)
                return lambda tensors: {name: tensor[near] for name, tensor in tensors.items()}
        return lambda tensors: _pick(tensors, owners)

    def _by_chain(self, chain: Chain, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            points = points.requires_grad_()
            inputs, sought = self.decode(points)
            entered = chain.enter(inputs)
        if sought is None:
            labels = cast(Tensor, self.labels)[rows]
            chances = functional.one_hot(labels, self.company.first.num_classes).to(entered)
        else:
            chances = sought.detach()
        pick = self._heard(rows)
        heard, visible = pick(self.targets), pick(self.visible)
        left = pick({name: lone.left for name, lone in self.lone.items()})
        right = pick({name: lone.right for name, lone in self.lone.items()})

        def compare(
            gradients: dict[str, Tensor | Thin],
        ) -> tuple[Tensor, dict[str, Tensor | Thin]]:
            pushes: dict[str, Tensor | Thin] = {}
            total = points.new_zeros(len(points))
            for name in self.lone:
                guess = cast(Thin, gradients[name])
                value, pushes[name] = _beyond(guess, Thin(left[name], right[name]))
                total = total + value
            for name, target in heard.items():
                push = cast(Tensor, gradients[name]).sub_(target)
                if name in visible:
                    push = push.mul_(visible[name])
                total = total + torch.linalg.vector_norm(push.flatten(1), dim=1).square()
                pushes[name] = push
            return total, pushes

        weights = self.weights
        if self.company.weights:
            weights = _pick(weights, self.owners[rows])
        with torch.no_grad():
            values, by_input, by_target = chain.value_and_slopes(
                entered.detach(), chances, weights, compare, thin=self.lone
            )
        outputs, pulls = [entered], [2 * by_input]
        if sought is not None:
            outputs.append(sought)
            pulls.append(2 * by_target)
        (slopes,) = torch.autograd.grad(outputs, points, pulls)
        return values, slopes

    def _forward(self, points: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        company, first = self.company, self.company.first
        own = {name: p.detach() for name, p in first.model.named_parameters()}
        pick = self._heard(rows)
        heard, visible = pick(self.targets), pick(self.visible)
        weights = _pick(company.weights, self.owners[rows])
        single = len(company.victims) == 1
        if single:
            heard, visible = ({n: t[0] for n, t in some.items()} for some in (heard, visible))

        def one(
            point: Tensor,
            heard: Tensors,
            visible: Tensors,
            weights: dict[str, Tensor],
            labels: Tensor | None,
        ) -> tuple[Tensor, Tensor]:
            state = {**own, **weights}

            def loss(point: Tensor, sought: Tensors) -> Tensor:
                inputs, chances = self.decode(point[None])
                logits = functional_call(first.model, {**state, **sought}, (inputs[0],))
                targets = labels if chances is None else chances[0]
                return first.loss(logits, cast(Tensor, targets))

            sought = {name: state[name] for name in heard}
            gradient = grad(loss, argnums=1)(point, sought)
            push = {name: gradient[name] - heard[name] for name in heard}
            push = {name: p * visible[name] if name in visible else p for name, p in push.items()}
            value = torch.stack([p.square().sum() for p in push.values()]).sum()
            slope = jvp(lambda sought: grad(loss)(point, sought), (sought,), (push,))[1]
            return value, 2 * slope

        labels = None if self.labels is None else self.labels[rows]
        shared = None if single else 0
        of_rows = vmap(one, in_dims=(0, shared, shared, 0, None if labels is None else 0))
        with warnings.catch_warnings():  # forward mode compiles its formulas by a deprecated call
            warnings.simplefilter("ignore", FutureWarning)
            values, slopes = of_rows(points, heard, visible, weights, labels)
        return values, slopes


def _pick(tensors: Tensors, owners: Tensor) -> dict[str, Tensor]:
    return {name: tensor[owners] for name, tensor in tensors.items()}


def _lone_examples(chain: Chain, company: Company) -> dict[str, Thin]:
    """Return the gradients heard of dense layers that are products of two vectors, by name.

    The gradient of one example is one, up to rounding: a unit vector (V, 1, O), and (V, 1, K). A
    layer is left out when any victim's is not, for it was noised, say, or cut, or heard in part.
    """
    if company.first.batch_size != 1:
        return {}
    found = {}
    for name in chain.dense:
        if name not in company.targets or name in company.visible:
            continue
        pairs = [_factors(heard) for heard in company.targets[name]]
        if all(pair is not None for pair in pairs):
            lefts, rights = zip(*(pair for pair in pairs if pair is not None), strict=True)
            found[name] = Thin(torch.stack(lefts), torch.stack(rights))
    return found


def _factors(matrix: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the unit vector (1, O) and the vector (1, K) whose product is a matrix, or None."""
    exact = matrix.double()
    row = exact[exact.square().sum(dim=1).argmax()]
    left = exact @ row
    left = (left / left.norm().clamp_min(torch.finfo(exact.dtype).tiny))[None]
    right = left @ exact
    beyond = torch.linalg.matrix_norm(exact - left.mT @ right)
    if not beyond <= _ROUNDING * torch.linalg.matrix_norm(exact):
        return None
    return left.to(matrix), right.to(matrix)


def _beyond(guess: Thin, heard: Thin) -> tuple[Tensor, Thin]:
    """Return the squared distances (r,) of d^T a from u^T v, and the differences themselves.

    With c = u d^T the difference is (d - c u)^T a + u^T (c a - v), and as u is a unit vector the
    two parts are orthogonal: nothing cancels close to the solution but what is equal there.
    """
    along = (guess.left * heard.left).sum(dim=2, keepdim=True)
    aside = torch.addcmul(guess.left, along, heard.left, value=-1)
    rest = along * guess.right - heard.right
    value = aside.square().sum(dim=2) * guess.right.square().sum(dim=2) + rest.square().sum(dim=2)
    left = heard.left.expand_as(aside)  # one victim stands for all guesses at it
    push = Thin(torch.cat((aside, left), 1), torch.cat((guess.right, rest), 1))
    return value[:, 0], push
