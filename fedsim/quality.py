"""How close guesses came, on the scale of what clients hold: images, text or tables.

Tables, pages and charts show one number for each private example; which one, is said here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from fedsim.files import Record
from fedsim.schemas.document import Modality

Value = TypeVar("Value", covariant=True)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A number for each private example; higher is closer.

    Attributes:
        field: Its name in scores and summaries.
        title: What people call it.
        unit: In which it is shown.
        noun: What one private example is called.
        nouns: What several are.
        part: What a share is a share of; empty for what is no share.
        factor: From records to what is shown.
        most: The highest value, as shown; None if none is worth the room on an axis.
    """

    field: str
    title: str
    unit: str
    noun: str
    nouns: str
    part: str = ""
    factor: float = 1.0
    most: float | None = None

    @property
    def axis(self) -> str:
        """What axes and heads of tables say."""
        return f"{self.title}, {self.unit}"

    def shown(self, value: float | None) -> float | None:
        """Return a value in the unit of axes and tables."""
        return None if value is None else self.factor * value

    def written(self, value: float | None) -> str:
        """Return a value with its unit."""
        if value is None:
            return "\u2013"
        number = f"{self.factor * value:.1f}"
        return f"{number.removesuffix('.0') if self.part else number}\u00a0{self.unit}"

    def bare(self, value: float | None) -> str:
        """Return a value without its unit, which the head of the table has."""
        return "\u2013" if value is None else f"{self.factor * value:.1f}"

    def limit(self, value: float) -> str:
        """Return a threshold with its unit."""
        return f"{self.factor * value:g}\u00a0{self.unit}"

    def limit_in_full(self, value: float) -> str:
        """Return a threshold for a sentence: of a share it says of what."""
        return f"{self.limit(value)} of {self.part}" if self.part else self.limit(value)


SCALES: Mapping[Modality, Scale] = {
    "image": Scale(field="psnr_db", title="PSNR", unit="dB", noun="image", nouns="images"),
    "text": Scale(
        field="accuracy",
        title="tokens at their place",
        unit="%",
        noun="text",
        nouns="texts",
        part="tokens at their place",
        factor=100,
        most=100,
    ),
    "table": Scale(
        field="accuracy",
        title="features right",
        unit="%",
        noun="row",
        nouns="rows",
        part="features right",
        factor=100,
        most=100,
    ),
}
_LISTS = {"image": "images", "text": "texts", "table": "rows"}


def modality_of(record: Record) -> Modality:
    """Return what the private examples of a score, or of a row of a summary, are."""
    return cast(Modality, record.get("modality", "image"))  # records of earlier versions lack it


def scale_of(record: Record) -> Scale:
    """Return the scale of a score, or of a row of a summary."""
    return SCALES[modality_of(record)]


def examples(score: Record) -> list[Record]:
    """Return the private examples of a score, each with its guess."""
    found: list[Record] = score.get(_LISTS[modality_of(score)], [])
    return found


def values(score: Record) -> list[float]:
    """Return how close the guesses of a score came; examples without a guess are left out."""
    field = scale_of(score).field
    return [one[field] for one in examples(score) if one[field] is not None]


def baseline_values(score: Record, name: str = "data_mean") -> list[float]:
    """Return how close a guess that needs no attack came, by private example.

    Args:
        score: The score.
        name: Of the guess: random_guess, data_mean or nearest_public.
    """
    if modality_of(score) == "image":
        found: list[float] = score["baselines"][name]["psnr_db"]
    else:
        found = score["baseline_accuracy"].get(name, [])
    return found


# rows of documents, which have a field per scale


class Measured(Protocol[Value]):
    """A row of a document that says how close guesses came."""

    @property
    def modality(self) -> Modality:
        """What private examples are."""

    @property
    def psnr_db(self) -> Value | None:
        """Of images."""

    @property
    def accuracy(self) -> Value | None:
        """Of texts and rows."""


class Baseline(Protocol):
    """A row of a document that says what guessing gives."""

    @property
    def modality(self) -> Modality:
        """What private examples are."""

    @property
    def baseline_psnr_db(self) -> float | None:
        """Of images."""

    @property
    def baseline_accuracy(self) -> float | None:
        """Of texts and rows."""


class Threshold(Protocol):
    """A row of a document that says what counts as recovered."""

    @property
    def modality(self) -> Modality:
        """What private examples are."""

    @property
    def success_threshold_db(self) -> float:
        """Of images."""

    @property
    def success_accuracy(self) -> float | None:
        """Of texts and rows."""


def measured(row: Measured[Value]) -> Value | None:
    """Return how close guesses came."""
    return row.psnr_db if row.modality == "image" else row.accuracy


def baseline(row: Baseline) -> float | None:
    """Return the median that guessing the data mean gives."""
    return row.baseline_psnr_db if row.modality == "image" else row.baseline_accuracy


def threshold(row: Threshold) -> float:
    """Return the value from which an example counts as recovered."""
    if row.modality == "image":
        return row.success_threshold_db
    return 1.0 if row.success_accuracy is None else row.success_accuracy
