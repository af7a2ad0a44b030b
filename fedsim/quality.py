"""How close guesses came, on the scale of what clients hold: images, text or tables.

Tables, pages and charts show one number for each private example; which one, is said here.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from fedsim.files import Record
from fedsim.schemas.document import Modality


@dataclass(frozen=True, kw_only=True)
class Scale:
    """A number for each private example; higher is closer.

    Attributes:
        field: Its name in scores and summaries.
        title: As axes call it, with its unit.
        noun: What one private example is called.
        nouns: What several are.
        limits: Lowest and highest value that charts need show; None for as they come.
    """

    field: str
    title: str
    noun: str
    nouns: str
    limits: tuple[float, float] | None = None

    def written(self, value: float | None) -> str:
        """Return a value with its unit."""
        if value is None:
            return "-"
        return f"{value:.1f} dB" if self.field == "psnr_db" else f"{100 * value:.0f} %"


SCALES: Mapping[Modality, Scale] = {
    "image": Scale(field="psnr_db", title="PSNR in dB", noun="image", nouns="images"),
    "text": Scale(
        field="accuracy", title="tokens at their place", noun="text", nouns="texts", limits=(0, 1)
    ),
    "table": Scale(
        field="accuracy", title="features right", noun="row", nouns="rows", limits=(0, 1)
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
