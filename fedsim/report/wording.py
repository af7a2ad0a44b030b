"""Numbers and findings in words."""

from collections.abc import Collection, Sequence

from fedsim.files import Record
from fedsim.quality import SCALES, baseline, measured, threshold
from fedsim.schemas.summary import Leakage

NOTHING = "\u2013"
SPACE = "\u00a0"
"""Between a number and its unit: no line ends there."""


def decibels(value: float | None) -> str:
    """Return a PSNR as text."""
    return NOTHING if value is None else f"{value:.1f}{SPACE}dB"


def percent(value: float | None) -> str:
    """Return a share as text."""
    if value is None:
        return NOTHING
    return f"{100 * value:.1f}".removesuffix(".0") + f"{SPACE}%"


def number(value: float | None, digits: int = 2) -> str:
    """Return a number as text."""
    # adding zero turns a rounded -0.0 into 0.0
    return NOTHING if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def tiny(value: float | None) -> str:
    """Return an error as text, in powers of ten where it is tiny."""
    if value is None:
        return NOTHING
    return f"{value:.1e}" if 0 < value < 1e-4 else f"{value:.4f}"


def share(value: float | None) -> str:
    """Return a relative error as text: in percent, or in powers of ten where it is tiny."""
    if value is None:
        return NOTHING
    if value == 0 or value >= 1e-3:
        return percent(value)
    return f"{value:.0e}"


def size(num_bytes: float | None) -> str:
    """Return bytes as text."""
    if num_bytes is None:
        return NOTHING
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000 or unit == "GB":
            break
        num_bytes /= 1000
    digits = 0 if unit == "B" or num_bytes >= 100 else 1
    return f"{num_bytes:.{digits}f}{SPACE}{unit}"


def duration(seconds: float | None) -> str:
    """Return seconds as text."""
    if seconds is None:
        return NOTHING
    if seconds < 60:
        return f"{seconds:.{2 if seconds < 1 else 1}f}{SPACE}s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = (f"{hours} h", f"{minutes:02} min") if hours else (f"{minutes} min", f"{rest:02} s")
    return " ".join(parts).replace(" ", SPACE)


def count(amount: int, one: str, many: str | None = None) -> str:
    """Return an amount with its noun in the right form."""
    return f"{amount} {one if amount == 1 else many or one + 's'}"


def adversary(threat: Record | None, name: str) -> str:
    """Return who listens, as a noun: "the curious server"; an oracle is always called one."""
    base, *extra = name.split("+")
    told = [f"granted {grant}" for grant in extra if grant != "labels"]
    if "labels" in extra or (threat is not None and threat["oracle"]):
        told.append("told the private labels (an oracle)")
    return f"the {base.replace('-', ' ')}" + (f", {', '.join(told)}," if told else "")


def strongest(rows: Sequence[Leakage]) -> Leakage | None:
    """Return the attack on examples that recovered most, by rate, then by the median likeness."""

    def strength(row: Leakage) -> tuple[float, float]:
        found = measured(row)
        return row.success_rate or 0.0, -1.0 if found is None else found.median

    guessing = [row for row in rows if row.success_rate is not None]
    return max(guessing, key=strength, default=None)


def headline(
    rows: Sequence[Leakage],
    threat: Record | None,
    *,
    honest: Collection[str] = (),
    why_nothing: str = "nothing was attacked yet",
) -> str:
    """Return the finding of a run in one sentence, with the baseline that it must beat.

    Args:
        rows: What each attack got.
        threat: The record of the threat model.
        honest: Attacks that use nothing only an oracle would know, though it may be granted.
        why_nothing: Why there are no rows, if there are none.
    """
    if not rows:
        return nothing_known(why_nothing)
    best = strongest(rows)
    if best is None:
        return _labels_only(rows, threat, honest)
    who = _sentence(_who(best, threat, honest))
    scale, found = SCALES[best.modality], measured(best)
    limit = scale.limit_in_full(threshold(best))
    if found is None:
        failed = count(sum(row.failed for row in rows), "attack")
        return f"{failed} failed and none made a guess; that says nothing about safety."
    guessing = f"guessing the data mean gives {scale.written(baseline(best))}"
    private = count(best.num_images, scale.noun)
    if best.num_recovered:
        what = f"{best.num_recovered} of {private}"
        return f"{who} recovered {what} to {limit} or better ({best.attack}); {guessing}."
    return (
        f"{who} recovered none of {private} to {limit}; {best.attack} came "
        f"closest with a median of {scale.written(found.median)}, and {guessing}."
    )


def _who(row: Leakage, threat: Record | None, honest: Collection[str]) -> str:
    """Return who made an attack; one that made no use of the private labels is no oracle."""
    if row.attack not in honest:
        return adversary(threat, row.threat)
    told = [grant for grant in row.threat.split("+") if grant != "labels"]
    return adversary(None, "+".join(told))


def nothing_known(why: str) -> str:
    """Return the finding of a run without attacks in one sentence."""
    return _sentence(f"{why}, so nothing is known of what this training leaks.")


def nothing_attacked(
    rounds: Sequence[Record],
    *,
    ended: bool,
    asked: bool,
    heard: bool = True,
    encrypted: bool = False,
) -> str:
    """Say why a run has no attack to show, as the first half of a sentence.

    Args:
        rounds: Its records of rounds.
        ended: Whether the run is over.
        asked: Whether its experiment names attacks.
        heard: Whether anything was heard that can be attacked.
        encrypted: Whether all that was heard of tapped links was encrypted.
    """
    if encrypted:
        return "the links were encrypted, and nothing was heard"
    refused = sum(record.get("rejected", 0) for record in rounds)
    if refused and not any(record.get("clients") for record in rounds):
        replies = "the only update" if refused == 1 else f"every one of {refused} updates"
        return f"{replies} was refused before it was used"
    if not asked:
        return "the experiment names no attack"
    if ended and not heard:
        return "nothing was heard"
    return "nothing was attacked" if ended else "nothing was attacked yet"


def remarks(row: Leakage) -> list[str]:
    """Return what makes the numbers of an attack look better than they are, a sentence each."""
    copies, scale, found = row.copies, SCALES[row.modality], list[str]()
    if copies.private:
        recovered = (
            f"{row.distinct_recovered} of {row.num_distinct} different {scale.nouns} recovered"
        )
        one, many = f"private {scale.noun} repeats", f"private {scale.nouns} repeat"
        what = count(copies.private, one, many)
        found.append(f"{what} another one of the same batch: {recovered}")
    if copies.guesses:
        what = count(copies.guesses, "guess repeats", "guesses repeat")
        found.append(f"{what} an earlier guess at the same batch")
    if copies.public:
        what = count(copies.public, "guess is a copy", "guesses are copies")
        found.append(f"{what} of a public {scale.noun}, which shows nothing of the private batch")
    return found


def _labels_only(rows: Sequence[Leakage], threat: Record | None, honest: Collection[str]) -> str:
    best = max(rows, key=lambda row: row.label_accuracy or 0.0)
    who = _sentence(_who(best, threat, honest))
    return (
        f"{who} read off {percent(best.label_accuracy)} of the private labels ({best.attack}); "
        f"no attack guessed {SCALES[best.modality].nouns}."
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
