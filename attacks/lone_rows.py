"""Rows of the first layer's gradient that show one image alone, told from mixtures by proof.

A row (G_j, h_j) in which one example alone is active gives that example, G_j / h_j. A candidate
must pass two tests: at its own row, B h_j = s_j for a label; and all of its s must lie in the
column space of the gradient (`attacks.column_space`). What was proved is taken off the gradient.
"""

import itertools
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attacks.column_space import (
    CHANCE,
    EXACT,
    MOST_EQUATIONS,
    SIGMAS,
    Noise,
    chance_log10,
    distance_without,
)
from attacks.first_layer import FirstLayer

_QUIET = 2.0
"""A row is explained when what is left is below so many standard deviations, root mean square
over its entries, which are many."""
_WORSE = 5.0
"""A candidate waits when its error is so many times the best one's."""
_LARGEST_ERROR = 0.03
"""Largest error of a candidate, relative to the input range."""
_SAME = 1e-4
"""Images that differ by less than this part of the range, root mean square, are the same."""
_LARGEST_MISMATCH = 0.05
_LARGEST_BEYOND = 0.15
"""Largest misfit of a proof, relative, however noisy the gradient: above this, an image that is
mixed with a little of another may pass."""
_AUDIBLE = 8.0
"""So many standard deviations above the noise something is heard."""
_UNSURE = 3.0
"""So many standard deviations from zero the sign of z is certain."""
_CHANGED = 1e-6
"""A row is tried again when its bias gradient changed by so much, relative."""
_MOST_SELECTIONS = 20_000_000
"""Label selections times rows that are compared; more copies than that are not searched for."""
_POLISHES = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """The u images proved so far, and the n examples that show them.

    Attributes:
        read: As first read off one row, (u, D).
        read_errors: Standard deviation of the error of an entry of `read`, (u,).
        inputs: As they are known now, (u, D).
        errors: Standard deviation of the error of an entry of `inputs`, (u,).
        chance: Of a coincidence, log10, (u,).
        labels: (n,).
        owners: Which image each example shows, (n,).
    """

    read: Tensor
    read_errors: Tensor
    inputs: Tensor
    errors: Tensor
    chance: Tensor
    labels: Tensor
    owners: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def nothing(cls, like: Tensor, width: int) -> "Found":
        """Return no image and no example."""
        images, numbers = like.new_empty(0, width), like.new_empty(0)
        counts = torch.empty(0, dtype=torch.int64, device=like.device)
        return cls(
            read=images,
            read_errors=numbers,
            inputs=images,
            errors=numbers,
            chance=numbers,
            labels=counts,
            owners=counts,
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Left:
    """The gradient without what the images found explain.

    Attributes:
        gradient: What is left, (m, D + 1).
        parts: s / B of each image's examples together, (u, m).
        noise: Standard deviation of the error of an entry, per row, (m,).
        certain: Rows that were heard and of which it is certain which images take part, (m,).
    """

    gradient: Tensor
    parts: Tensor
    noise: Tensor
    certain: Tensor


class RowSearch:
    """One gradient, and what was tried on it."""

    def __init__(
        self,
        layer: FirstLayer,
        gradient: Tensor,
        heard: Tensor,
        noise: Noise,
        batch_size: int,
        rng: torch.Generator,
    ) -> None:
        self.layer, self.gradient, self.heard, self.noise = layer, gradient, heard, noise
        self.batch_size = batch_size
        self.weight_norms = layer.weight.norm(dim=1)
        self.width = float((layer.high - layer.low).square().mean().sqrt())
        self.shake = layer.weight @ torch.randn(layer.low.shape, generator=rng).to(layer.low)
        self.tests = 0
        self.tried = torch.full_like(gradient[:, -1], torch.nan)  # h_j when row j was last tried

    def left(self, found: Found) -> Left:
        """Take what is found off the gradient."""
        outputs = self.layer.outputs(found.inputs)
        each = self.layer.sensitivities(outputs[found.owners], found.labels) / self.batch_size
        parts = torch.zeros_like(outputs).index_add(0, found.owners, each) * self.heard
        spread: Tensor = (parts * found.errors[:, None]).square().sum(0)
        return Left(
            gradient=self.gradient - parts.T @ _with_one(found.inputs),
            parts=parts,
            noise=(self.noise.rows.square() + spread).sqrt(),
            certain=self.heard & ~self._unsure(outputs, found.errors).any(0),
        )

    def _unsure(self, outputs: Tensor, errors: Tensor) -> Tensor:
        """Return where the sign of z is not certain, (N, m) bool, for z (N, m), errors (N,)."""
        unsure: Tensor = outputs.abs() < _UNSURE * errors[:, None] * self.weight_norms
        return unsure

    def peel(self, found: Found, copies: int) -> Found:
        """Return `found`, and what rows with one image alone, so often in the batch, prove."""
        left = self.left(found)
        bias = left.gradient[:, -1]
        live = left.certain & (bias.abs() > _AUDIBLE * left.noise)
        if copies == 1:
            live &= ~((bias - self.tried).abs() <= _CHANGED * bias.abs())
            self.tried = torch.where(live, bias, self.tried)
        rows = live.nonzero().flatten()
        inputs = left.gradient[rows, :-1] / bias[rows, None]
        errors = left.noise[rows] * (1 + inputs.square().mean(1)).sqrt() / bias[rows].abs()
        inside = self._inside(inputs, errors) & (errors <= _LARGEST_ERROR * self.width)
        rows, inputs, errors = rows[inside], inputs[inside], errors[inside]
        selections = math.comb(self.layer.num_classes + copies - 1, copies)
        if not len(rows) or selections * len(rows) > _MOST_SELECTIONS:
            return found
        labels = _selections(self.layer.num_classes, copies, bias.device)
        self.tests += len(rows) * len(labels)
        outputs = self.layer.outputs(inputs)
        at = self.layer.sensitivities_at(outputs, rows)
        heard = self.batch_size * bias[rows, None]
        mismatch = (at[:, labels].sum(2) / heard - 1).abs()
        which, selection = (mismatch <= _LARGEST_MISMATCH).nonzero(as_tuple=True)
        proved, chance = self._prove(
            outputs[which],
            labels[selection],
            mismatch[which, selection],
            errors[which],
            (left.noise[rows] / bias[rows].abs())[which],
        )
        which, selection, chance = which[proved], selection[proved], chance[proved]
        return self._add(found, inputs[which], errors[which], chance, labels[selection])

    def _inside(self, inputs: Tensor, errors: Tensor) -> Tensor:
        """Whether inputs (N, D) can be images, as far as their noise tells."""
        slack = (1e-6 + _AUDIBLE * errors)[:, None] * (1 + inputs.abs())
        low, high = self.layer.low - slack, self.layer.high + slack
        return ((inputs >= low) & (inputs <= high)).all(1)

    def _prove(
        self, outputs: Tensor, labels: Tensor, mismatch: Tensor, errors: Tensor, shaky: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Test whether all rows agree that candidates are in the batch.

        Args:
            outputs: z of the candidates, (N, m).
            labels: Theirs, (N, copies).
            mismatch: Relative misfit at the row that each was read off, (N,).
            errors: Standard deviation of the errors of their inputs, (N,).
            shaky: Relative standard deviation of the error of what was heard at that row, (N,).

        Returns:
            Whether, (N,) bool; and the chance of a coincidence, log10, (N,).
        """
        s = self._sum(outputs, labels)
        beyond = self.noise.beyond(s)
        unsure = self._unsure(outputs, errors) & self.heard
        distance = distance_without(unsure, beyond.rest, self.noise.basis) / beyond.lengths
        # Noise puts a true one off: in the space, which is its blur, and in the candidate itself.
        shaken = self._sum(outputs + errors[:, None] * self.shake, labels)
        change = torch.where(unsure, 0.0, shaken - s).norm(dim=1) / beyond.lengths
        agrees = mismatch <= EXACT + SIGMAS * (shaky + change)
        allowed = EXACT + 2 * beyond.blur + SIGMAS * change
        agrees &= distance <= allowed.clamp_max(_LARGEST_BEYOND)
        equations = (self.noise.equations - unsure.sum(1)).clamp(0, MOST_EQUATIONS)
        chance = chance_log10(self.tests, mismatch, equations, distance)
        return agrees & (chance <= CHANCE), chance

    def _sum(self, outputs: Tensor, labels: Tensor) -> Tensor:
        """Return s, (N, m), of examples that show one image, with labels (N, copies)."""
        each = [self.layer.sensitivities(outputs, column) for column in labels.T]
        return torch.stack(each).sum(0) * self.heard

    def _add(
        self, found: Found, inputs: Tensor, errors: Tensor, chance: Tensor, labels: Tensor
    ) -> Found:
        """Add what was proved, each image once, the most precise first, up to B examples.

        What is far less precise than the best waits: once that is taken off, better rows may show
        it, and until then it would cast doubt on many rows.
        """
        room = (self.batch_size - len(found)) // labels.shape[1]
        known, close = found.inputs, found.errors
        picked: list[int] = []
        for index in errors.argsort(stable=True).tolist():
            limit = (
                max(_WORSE * float(errors[picked[0]]), _SAME * self.width) if picked else math.inf
            )
            if len(picked) == room or float(errors[index]) > limit:
                break
            near = (known - inputs[index]).square().mean(1).sqrt()
            if not bool((near <= _SAME * self.width + _AUDIBLE * (close + errors[index])).any()):
                picked.append(index)
                known = torch.cat([known, inputs[index : index + 1]])
                close = torch.cat([close, errors[index : index + 1]])
        owners = len(found.inputs) + torch.arange(len(picked), device=known.device)
        return Found(
            read=torch.cat([found.read, inputs[picked]]),
            read_errors=torch.cat([found.read_errors, errors[picked]]),
            inputs=known.clamp(self.layer.low, self.layer.high),
            errors=close,
            chance=torch.cat([found.chance, chance[picked]]),
            labels=torch.cat([found.labels, labels[picked].flatten()]),
            owners=torch.cat([found.owners, owners.repeat_interleave(labels.shape[1])]),
        )

    def polish(self, found: Found) -> Found:
        """Correct the images by all rows that they explain, in least squares.

        Each row is weighted by its noise, and what was first read off counts once more.
        """
        if not len(found):
            return found
        trust = found.read_errors.clamp_min(torch.finfo(found.read.dtype).tiny ** 0.5) ** -2
        for _ in range(_POLISHES):
            left = self.left(found)
            quiet = left.gradient.square().mean(1).sqrt() <= _QUIET * left.noise
            rows = quiet & left.certain & (left.parts != 0).any(0)
            scaled = left.parts[:, rows] / self.noise.rows[rows]
            pull = scaled @ (left.gradient[rows, :-1] / self.noise.rows[rows, None])
            pull = pull + trust[:, None] * (found.read - found.inputs)
            inverse = torch.linalg.inv(scaled @ scaled.T + torch.diag(trust))
            found = replace(
                found,
                inputs=(found.inputs + inverse @ pull).clamp(self.layer.low, self.layer.high),
                errors=2 * inverse.diagonal().clamp_min(0).sqrt(),
            )
        return found


def _with_one(inputs: Tensor) -> Tensor:
    """Return inputs (n, D) with a column of ones, which stands for the bias, (n, D + 1)."""
    return torch.cat([inputs, inputs.new_ones(len(inputs), 1)], 1)


def _selections(num_classes: int, copies: int, device: torch.device) -> Tensor:
    """Return all choices of `copies` labels without regard to order, (selections, copies)."""
    choices = itertools.combinations_with_replacement(range(num_classes), copies)
    return torch.tensor(list(choices), dtype=torch.int64, device=device)
