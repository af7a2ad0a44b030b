"""What the attacks by matching share: free embeddings, an optimizer, and reading tokens out.

Embeddings of unknown tokens are searched for until the gradient they give is the one heard; then
each is read as the nearest token. At every look the tokens read are tried themselves: where they
give the gradient heard but for rounding, they are proved, and the search ends. No paper.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional

from attacks.matching.snapshots import looks_due, onlooker
from attacks.observation import (
    AttackFailed,
    Budget,
    Knowledge,
    Observation,
    Reconstruction,
    Snapshot,
    only,
    require_one_step,
)
from attacks.settings import require_choice, require_counts, require_positive
from attacks.text.language import text_known
from attacks.text.predictions import HardGuess, Prediction, prediction_of
from attacks.text.victim import OPEN, TextVictim, rebuild_text, tokens_named
from attacks.threats import WHITE_BOX, Capability

PROVED = 1e-4
"""Distance to the gradient heard, relative to its length, of tokens that are taken for proved."""
_TRY_EVERY = 10
"""Optimizer steps between two trials of the tokens read."""
_PATIENCE = 10
"""Steps of L-BFGS in which the objective falls, at least by a factor of `_HARDLY`."""
_HARDLY = 0.95
_LABELS_FASTER = 10.0
"""Step size of variables that stand for labels, against that of embeddings."""

Optimizer = Literal["lbfgs", "adam", "adamw"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Search:
    """One restart under way.

    Attributes:
        victim: Whose text is searched for.
        prediction: What is known of its labels.
        candidates: Tokens that may be read, (N,).
        rng: The only source of randomness.
        embeddings: The guess, (B, T, D), of which known places do not count.
        variables: That stand for labels.
    """

    victim: TextVictim
    prediction: Prediction
    candidates: Tensor
    rng: torch.Generator
    embeddings: Tensor
    variables: Tensor

    @property
    def free(self) -> Tensor:
        """Where a token is not known, (B, T)."""
        return self.prediction.places == OPEN

    @cached_property
    def directions(self) -> Tensor:
        """The embeddings that may be read, each of length 1."""
        return functional.normalize(self.victim.table[self.candidates])

    def fed(self) -> Tensor:
        """Return what goes into the model: the embeddings of known tokens, the guess elsewhere."""
        known = self.victim.table[self.prediction.places.clamp_min(0)]
        return torch.where(self.free[..., None], self.embeddings, known)

    def read(self, how: str) -> Tensor:
        """Return the nearest token of each embedding, (B, T)."""
        found = self.embeddings.detach()[self.free]
        if how == "cosine":
            nearest = (found @ self.directions.T).argmax(dim=1)
        else:
            nearest = torch.cdist(found, self.victim.table[self.candidates]).argmin(dim=1)
        tokens = self.prediction.places.clone()
        tokens[self.free] = self.candidates[nearest]
        return tokens

    def harden(self, how: str) -> HardGuess:
        """Return tokens and labels in place of embeddings and variables."""
        return self.prediction.harden(self.read(how), self.variables)

    def distance_of(self, guess: HardGuess) -> float:
        """Return how far the gradient of tokens is from the one heard, relative to its length."""
        loss = self.prediction.loss(self.victim.table[guess.fed], guess.variables)
        return relative_distance(self.victim, self.victim.gradient(loss, differentiable=False))


@dataclass(frozen=True, kw_only=True)
class EmbeddingMatching(ABC):
    """Find the tokens whose gradient is the one heard; settings are those of the subclass.

    Attributes:
        steps: Optimizer steps of a restart.
        step_size: Of the optimizer, in units of embeddings.
        restarts: Most restarts; the best by the matching loss is taken. The first one that is
            proved ends the attack.
        start_size: Standard deviation of the start, in that of the token embeddings.
        read_out: Whether the nearest token is that of the largest "cosine" or the least "l2"
            distance.
        use_bag: Whether to read only tokens whose embedding's gradient says that they are in the
            text, or are labels.
        looks: Steps at which to keep the guess so far; none for a dozen, log-spaced.
    """

    steps: int
    step_size: float
    restarts: int = 1
    start_size: float = 1.0
    read_out: Literal["cosine", "l2"] = "cosine"
    use_bag: bool = False
    looks: tuple[int, ...] = ()

    optimizer: ClassVar[Optimizer] = "adam"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        require_counts(self, "steps", least=0)
        require_counts(self, "restarts")
        require_positive(self, "step_size", "start_size")
        require_choice(self, "read_out", "cosine", "l2")
        if any(look < 0 for look in self.looks):
            raise ValueError(f"looks must be steps from 0, got {tuple(self.looks)}")

    @property
    def needs(self) -> frozenset[Capability]:
        """The weights in force, the model, what inputs look like, and how many there are."""
        return WHITE_BOX

    def check(self, known: Knowledge) -> None:
        """Refuse what is no text, models that take no embeddings, and several local steps."""
        text_known(known)
        require_one_step(known.recipe)

    def __call__(
        self,
        seen: Observation | Sequence[Observation],
        known: Knowledge,
        *,
        rng: torch.Generator,
        budget: Budget | None = None,
    ) -> Reconstruction:
        """Guess the texts behind one gradient.

        Shapes:
            seen.update: one tensor per parameter, shaped like it
            returns .inputs: (B, T) int64, with what was masked filled in; all examples as long as
                the longest
            returns .labels: (B,) int64 of classes, else None

        Raises:
            AttackFailed: The victim cannot be rebuilt (`attacks.text.victim.rebuild_text`), labels
                of masked tokens cannot be read, or no restart has a finite distance.
        """
        began, budget = time.monotonic(), budget or Budget()
        self.check(known)
        victim = rebuild_text(only(seen), known)
        prediction = prediction_of(victim, known.loss, rng=rng)
        candidates = self._candidates(victim)
        ended: list[_Ended] = []
        while len(ended) < self.restarts and not (ended and (budget.spent or ended[-1].proved)):
            search = self.begin(victim, prediction, candidates, known, rng=rng)
            ended.append(self._run(search, budget))
        best = min(ended, key=_Ended.rank)
        if best.value == math.inf and not best.proved:
            raise AttackFailed("the distance between gradients is not finite at any restart")
        return Reconstruction(
            inputs=best.guess.sentence,
            labels=best.guess.labels,
            matching_loss=best.value,
            steps=best.steps,
            seconds=time.monotonic() - began,
            finished=not budget.spent or best.proved,
            certified=torch.full((victim.batch_size,), True) if best.proved else None,
            snapshots=best.snapshots,
            notes={
                "length": victim.length,
                "tokens_distance": best.distance,
                "restarts": len(ended),
                **({"candidates": len(candidates)} if self.use_bag else {}),
            },
        )

    @abstractmethod
    def distance(self, found: Mapping[str, Tensor], victim: TextVictim) -> Tensor:
        """Return how far a gradient is from the one heard."""

    def beyond(self, search: Search, embeddings: Tensor) -> Tensor | float:
        """Return what else the objective holds, of the embeddings fed."""
        del search, embeddings
        return 0.0

    def begin(
        self,
        victim: TextVictim,
        prediction: Prediction,
        candidates: Tensor,
        known: Knowledge,
        *,
        rng: torch.Generator,
    ) -> Search:
        """Draw embeddings, as large as those of tokens, and variables."""
        del known
        table = victim.table
        shape = (*prediction.places.shape, table.shape[1])
        drawn = torch.randn(shape, generator=rng).to(table)
        return Search(
            victim=victim,
            prediction=prediction,
            candidates=candidates,
            rng=rng,
            embeddings=(self.start_size * table.std() * drawn).requires_grad_(),
            variables=prediction.start(rng).requires_grad_(),
        )

    def between(self, step: int, search: Search) -> None:
        """Change the guess before a step, in place, by other means than its slope."""
        del step, search

    def rate(self, step: int) -> float:
        """Return the step size after so many steps, against the first."""
        del step
        return 1.0

    def objective(self, search: Search, *, differentiable: bool = True) -> Tensor:
        """Return what is minimised."""
        fed = search.fed()
        loss = search.prediction.loss(fed, search.variables)
        found = search.victim.gradient(loss, differentiable=differentiable)
        return self.distance(found, search.victim) + self.beyond(search, fed)

    def advance(self, search: Search) -> Iterator[float]:
        """Yield the objective before each step, and take it when asked for the next."""
        moved = [one for one in (search.embeddings, search.variables) if one.numel()]

        def evaluate() -> Tensor:
            value = self.objective(search)
            for one, slope in zip(moved, torch.autograd.grad(value, moved), strict=True):
                one.grad = slope
            return value.detach()

        if self.optimizer == "lbfgs":
            yield from _lbfgs(moved, evaluate, self.step_size, self.inner)
            return
        kind = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
        faster = (1.0, _LABELS_FASTER)
        groups = [
            {"params": [one], "lr": self.step_size * times}
            for one, times in zip(moved, faster, strict=False)
        ]
        optimizer = kind(groups, lr=self.step_size)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        while True:
            value = evaluate()
            yield float(value)
            self.tame(moved)
            optimizer.step()
            schedule.step()

    @property
    def inner(self) -> int:
        """Iterations of L-BFGS that count as one step."""
        return 1

    def stuck(self, values: Sequence[float]) -> bool:
        """Whether the objective, before each step so far, says that more steps are in vain."""
        return self.optimizer == "lbfgs" and values[-1] > _HARDLY * min(
            values[:-_PATIENCE] or [math.inf]
        )

    def tame(self, moved: Sequence[Tensor]) -> None:
        """Change slopes, in place, before a step."""
        del moved

    def _candidates(self, victim: TextVictim) -> Tensor:
        tokens = victim.tokens
        allowed = torch.full((tokens.vocabulary_size,), True, device=victim.table.device)
        allowed[list(tokens.special)] = False
        if tokens.end is not None and victim.batch_size > 1:  # it may be anywhere
            allowed[tokens.end] = True
        if self.use_bag:
            if victim.table_gradient is None:
                raise AttackFailed("use_bag reads the token embeddings' gradient: none heard")
            named = torch.zeros_like(allowed)
            named[tokens_named(victim.table_gradient)] = True
            if bool((named & allowed).any()):
                allowed &= named
        return torch.nonzero(allowed).flatten()

    def _run(self, search: Search, budget: Budget) -> "_Ended":
        due = set(self.looks) if self.looks else looks_due(self.steps)
        taken: list[Snapshot] = []
        tried: list[_Ended] = []
        steps = self.advance(search)
        values: list[float] = []
        for step in range(self.steps + 1):
            value = next(steps, math.inf)
            values.append(value)
            last = step == self.steps or budget.spent or self.stuck(values)
            if step in due or last or step % _TRY_EVERY == 0:
                guess = search.harden(self.read_out)
                distance = search.distance_of(guess)
                value = value if math.isfinite(value) else math.inf
                one = _Ended(guess=guess, value=value, distance=distance)
                tried = [min([*tried, one], key=_Ended.rank)]
                if step in due or last or one.proved:
                    taken.append(Snapshot(step=step, inputs=guess.sentence, matching_loss=value))
                    if (told := onlooker()) is not None:
                        told(taken[-1], search.rng)
                if last or one.proved:
                    break
            self.between(step, search)
        return replace(tried[0], steps=step, snapshots=tuple(taken))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Ended:
    """The best guess of a restart, and how far embeddings and tokens are from what was heard."""

    guess: HardGuess
    value: float
    distance: float
    steps: int = 0
    snapshots: tuple[Snapshot, ...] = ()

    @property
    def proved(self) -> bool:
        return self.distance <= PROVED

    def rank(self) -> tuple[bool, float]:
        return not self.proved, self.value


def relative_distance(victim: TextVictim, found: Mapping[str, Tensor]) -> float:
    """Return the length of the difference to the gradient heard, over the length of that."""
    apart = sum(
        float((found[name].detach() - heard).square().sum())
        for name, heard in victim.target.items()
    )
    return math.sqrt(apart) / victim.norm


def squared(found: Mapping[str, Tensor], victim: TextVictim) -> Tensor:
    """Return the squared distance of gradients, summed over all that is matched."""
    return torch.stack(
        [(found[name] - heard).square().sum() for name, heard in victim.target.items()]
    ).sum()


def cosine(found: Mapping[str, Tensor], victim: TextVictim) -> Tensor:
    """Return one less the cosine between gradients, mean over tensors."""
    return torch.stack(
        [
            1 - functional.cosine_similarity(found[name].flatten(), heard.flatten(), dim=0)
            for name, heard in victim.target.items()
        ]
    ).mean()


def _lbfgs(
    moved: list[Tensor], evaluate: Callable[[], Tensor], step_size: float, inner: int
) -> Iterator[float]:
    optimizer = torch.optim.LBFGS(
        moved,
        lr=step_size,
        max_iter=inner,
        history_size=100,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )
    yield float(evaluate())
    while True:
        optimizer.step(evaluate)  # type: ignore[no-untyped-call]
        yield float(evaluate())
