"""Which examples a report shows: the whole range from best to worst, never the best alone."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

from torch import Tensor

from attacks.observation import Reconstruction
from fedsim.data.text import sentences
from fedsim.examples import Reader, read_data
from fedsim.files import Record, read_json
from fedsim.quality import baseline_values, examples, scale_of
from fedsim.records import RunDirectory
from fedsim.truth import unseal

Item = TypeVar("Item")


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A private example and one attack's guess at it.

    Attributes:
        score: The score of the reconstruction.
        image: Its part on this example; None if the attack made no guess at it.
    """

    score: Record
    image: Record | None

    @property
    def key(self) -> tuple[str, int]:
        """Which private example this is, whatever the attack."""
        return self.score["observation"], self.image["truth"] if self.image else 0

    @property
    def value(self) -> float | None:
        """How close the guess came, if there is one."""
        return self.image[scale_of(self.score).field] if self.image else None

    @property
    def data_mean(self) -> float | None:
        """How close guessing the data mean comes, if it is known."""
        known, place = baseline_values(self.score), self.key[1]
        return known[place] if place < len(known) else None


@dataclass(frozen=True)
class Images:
    """The tensors behind scores, read once each: images, texts or rows.

    Attributes:
        run: Where they lie.
    """

    run: RunDirectory
    _truths: dict[tuple[int, str], Tensor | None] = field(default_factory=dict)
    _guesses: dict[tuple[str, str], Reconstruction] = field(default_factory=dict)

    @cached_property
    def reader(self) -> Reader:
        """Reads texts and rows."""
        return read_data(self.run)

    def original(self, score: Record, truth: int) -> Tensor | None:
        """Return a private example; None if the truth was taken out of the run.

        It is an image (C, H, W), the tokens of a text (T,) as its author wrote it, or a row (D,).
        """
        key = (score["round"], score["victim"])
        if key not in self._truths:
            sealed, tokens = unseal(self.run, *key), self.reader.tokens
            if sealed is not None and tokens is not None:
                sealed = sentences(*sealed, tokens), sealed[1]
            self._truths[key] = None if sealed is None else sealed[0]
        batch = self._truths[key]
        return None if batch is None else batch[truth]

    def guess(self, pair: Pair) -> Tensor | None:
        """Return the guess at a private example, shaped like it, if there is one."""
        if pair.image is None or pair.image["guess"] is None:
            return None
        inputs = self._reconstruction(pair.score).inputs
        return None if inputs is None else inputs[pair.image["guess"]]

    def film(self, pair: Pair, most: int) -> list[tuple[int, Tensor]]:
        """Return at most so many (step, guess so far) of one example, first to last."""
        if pair.image is None or pair.image["guess"] is None:
            return []
        snapshots = self._reconstruction(pair.score).snapshots
        chosen = [snapshots[place] for place in spread_over(len(snapshots), most)]
        return [(one.step, one.inputs[pair.image["guess"]]) for one in chosen]

    def _reconstruction(self, score: Record) -> Reconstruction:
        key = (score["observation"], score["attack"])
        if key not in self._guesses:
            record = read_json(self.run.root / "reconstructions" / f"{'--'.join(key)}.json")
            self._guesses[key] = self.run.read_reconstruction(record)
        return self._guesses[key]


def ranked(scores: Sequence[Record], attack: str) -> list[Pair]:
    """Return the guesses of one attack, the closest first."""
    pairs = [
        Pair(score=score, image=image)
        for score in scores
        if score["attack"] == attack
        for image in examples(score)
    ]
    guessed = [pair for pair in pairs if pair.value is not None]
    return sorted(guessed, key=lambda pair: (-(pair.value or 0.0), pair.key))


def spread_over(length: int, most: int) -> list[int]:
    """Return at most `most` places in a list, evenly apart, first and last among them."""
    if length <= most:
        return list(range(length))
    return [round(index * (length - 1) / (most - 1)) for index in range(most)]


def spread_of(items: Sequence[Item], most: int) -> list[Item]:
    """Return at most `most` items, evenly apart, first and last among them."""
    return [items[place] for place in spread_over(len(items), most)]


def best_median_worst(pairs: Sequence[Pair]) -> list[tuple[str, Pair]]:
    """Return the ends and the middle of ranked pairs, each with its name."""
    names = {1: ["only guess"], 2: ["best", "worst"]}.get(len(pairs), ["best", "median", "worst"])
    return list(zip(names, spread_of(pairs, 3), strict=bool(pairs)))


def same_image(scores: Sequence[Record], attack: str, like: Pair) -> Pair | None:
    """Return what another attack made of the same example; None if it was not attacked."""
    observation, truth = like.key
    for score in scores:
        if score["attack"] == attack and score["observation"] == observation:
            images = [one for one in examples(score) if one["truth"] == truth]
            return Pair(score=score, image=images[0] if images else None)
    return None
