"""What rows are made of: cases, data sets, victims."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn

from attacks.observation import Attack
from benchmarks.victims import Judged, Transform, Victim, data_mean_db, overhear, strike
from fedsim.data.kinds import TaskData
from fedsim.data.load import load_data
from fedsim.seeds import stream

Kind = Literal["A", "B", "C"]
"""CPU under 2 minutes; CPU under 15 minutes; GPU."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One setting of a row.

    Attributes:
        name: The setting.
        values: What was measured, one value per image, batch or network.
        baseline: What a guess without the update achieves, in the same unit.
        published: The published figure, as text; "" where there is none for this setting.
        low: The case agrees from this mean on.
        high: And up to this one.
        note: What a reader must know.
    """

    name: str
    values: Sequence[float]
    baseline: float | None = None
    published: str = ""
    low: float = -math.inf
    high: float = math.inf
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table.

    Attributes:
        number: Its number.
        attack: What is validated.
        setting: Data, model, batch.
        metric: What the values are.
        source: Where the published figure stands.
        kind: What it costs.
        measure: Measures it; None for a row that cannot be run.
        why_not: Why it cannot be run.
    """

    number: int
    attack: str
    setting: str
    metric: str
    source: str
    kind: Kind
    measure: Callable[["Bench"], list[Case]] | None = None
    why_not: str = ""


@dataclass
class Bench:
    """Data, loaded once each.

    Attributes:
        root: Folder of data sets that are not embedded.
        scale: Share of the victims of a row; 1 for the whole table, less to try it out.
    """

    root: str
    scale: float = 1.0
    _loaded: dict[str, TaskData] = field(default_factory=dict)

    def data(self, name: str) -> TaskData:
        """Return a data set."""
        if name not in self._loaded:
            self._loaded[name] = load_data(name, root=self.root, options={})
        return self._loaded[name]

    def count(self, whole: int) -> int:
        """Return how many victims to take where the whole table takes so many."""
        return max(1, round(self.scale * whole))

    def batches(self, name: str, size: int, whole: int) -> list[tuple[Tensor, Tensor]]:
        """Return batches of test images in order; drawn from all images where those run out.

        Args:
            name: The data set.
            size: Images per batch.
            whole: Batches that the whole table takes.
        """
        data, number = self.data(name), self.count(whole)
        if size * number <= len(data.test_labels):
            places = [torch.arange(k * size, (k + 1) * size) for k in range(number)]
            return [(data.test_inputs[place], data.test_labels[place]) for place in places]
        inputs = torch.cat((data.test_inputs, data.train_inputs))
        labels = torch.cat((data.test_labels, data.train_labels))
        drawn = [
            torch.randperm(len(labels), generator=stream(seed, "batch"))[:size]
            for seed in range(number)
        ]
        return [(inputs[place], labels[place]) for place in drawn]

    def victims(
        self,
        name: str,
        size: int,
        whole: int,
        model: Callable[[int], nn.Module],
        *,
        train_mode: bool = False,
        dtype: torch.dtype = torch.float32,
        sent: Transform | None = None,
    ) -> Iterator[Victim]:
        """Yield what is heard of each of `batches`; `model` returns the model of a seed."""
        for seed, (inputs, labels) in enumerate(self.batches(name, size, whole)):
            yield overhear(
                model(seed), inputs, labels, seed, train_mode=train_mode, dtype=dtype, sent=sent
            )

    def mean_db(self, name: str, victims: Sequence[Victim]) -> list[float]:
        """Return what guessing the mean of a data set's training images achieves, per image."""
        return data_mean_db(self.data(name).train_inputs, victims)


def psnr_case(
    name: str,
    attack: Attack,
    victims: Sequence[Victim],
    mean_db: Sequence[float],
    *,
    published: str = "",
    low: float = -math.inf,
    high: float = math.inf,
    budget_s: float | None = None,
) -> Case:
    """Attack victims; return a case of PSNR per image, beside that of the data mean."""
    judged = [strike(attack, victim, budget_s=budget_s) for victim in victims]
    failures = [one.failed for one in judged if one.failed]
    note = f"{len(failures)} of {len(judged)} failed: {failures[0]}" if failures else ""
    return Case(
        name=name,
        values=[db for one in judged for db in one.psnr_db],
        baseline=sum(mean_db) / len(mean_db),
        published=published,
        low=low,
        high=high,
        note=note,
    )


def seconds_each(judged: Sequence[Judged]) -> str:
    """Return the mean wall time of an attack, for a note."""
    return f"{sum(one.seconds for one in judged) / len(judged):.1f} s each"
