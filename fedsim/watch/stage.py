"""Where a run stands, in words."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsim.files import Record
from fedsim.quality import SCALES, Scale
from fedsim.report.wording import adversary, nothing_known, percent
from fedsim.watch.values import listed, table, text, whole

QUIET_S = 90.0
"""Seconds without anything new after which a page says so."""
_SIGNS = ("rounds.jsonl", "scores.jsonl", "events.jsonl", "observations", "reconstructions")


@dataclass(frozen=True)
class Stage:
    """Where a run stands.

    Attributes:
        name: waiting, training, attacking, done, interrupted or failed.
        quiet_s: Seconds since anything was written, where that is long; else None.
    """

    name: str
    quiet_s: int | None = None

    @property
    def live(self) -> bool:
        """Whether more may come."""
        return self.name in ("waiting", "training", "attacking")

    @property
    def record(self) -> Record:
        """As the page is told."""
        return {"stage": self.name, "live": self.live, "quiet_s": self.quiet_s}


def stage_of(
    root: Path,
    summary: Record | None,
    *,
    started: bool,
    trained: bool,
    covered: bool,
    working: bool,
    now: float,
) -> Stage:
    """Return where a run stands.

    Args:
        root: Its directory.
        summary: What `summary.json` holds.
        started: Whether its experiment is there.
        trained: Whether all rounds are.
        covered: Whether the summary tells of all that was recorded; see `covers`.
        working: Whether a worker has a job.
        now: Seconds since 1970.
    """
    if not started:
        return Stage("waiting")
    ended = (summary or {}).get("status")
    if ended in ("done", "interrupted", "failed") and covered:
        return Stage(str(ended))
    changed = max(_changed(root / file) for file in ("summary.json", *_SIGNS))
    idle = now - changed
    quiet = int(idle // 10 * 10) if idle > QUIET_S and not working and changed else None
    return Stage("attacking" if trained else "training", quiet)


def covers(summary: Record, *, rounds: int, scores: int, others: int) -> bool:
    """Whether a summary counts what the logs hold: else it is of an earlier end of the run.

    When files were written says nothing: copies have times of their own.

    Args:
        summary: What `summary.json` holds.
        rounds: The last round of the log.
        scores: Scores that a page counts.
        others: Lines that may be scores, and make no sense.
    """
    rows = [table(one) for one in listed(summary.get("leakage"))]
    told = sum(whole(one.get("victims")) or 0 for one in rows)
    told += whole(summary.get("unscored_attacks")) or 0
    return summary.get("rounds") == rounds and scores <= told <= scores + others


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def headline(
    rows: Mapping[str, Mapping[str, Any]],
    kinds: Mapping[str, str],
    threat: Record | None,
    stage: str,
    *,
    scale: Scale = SCALES["image"],
    asked: bool = True,
    why_nothing: str = "nothing was attacked",
) -> str:
    """Return what is known so far, in a sentence that does not say more than that.

    Args:
        rows: What each attack got.
        kinds: What sets attacks apart, in words.
        threat: What `threat.json` holds.
        stage: Where the run stands.
        scale: On which guesses were measured.
        asked: Whether the experiment names attacks.
        why_nothing: Why there are no rows, if the run is over and there are none.
    """
    if stage == "waiting":
        return "Waiting for the run to begin."
    on_images = {name: row for name, row in rows.items() if row["images"]}
    honest = {name: row for name, row in on_images.items() if "oracle" not in kinds.get(name, "")}
    who = _who(threat, honest=bool(honest) or not on_images)
    far = "" if stage == "done" else " so far"
    if not on_images:
        labels = {name: row["labels"] for name, row in rows.items() if row["labels"] is not None}
        if labels:
            best = max(labels, key=lambda name: labels[name])
            return f"{who} read off {percent(labels[best])} of the private labels{far} ({best})."
        if not asked and not rows:
            return "The experiment names no attack, so nothing is known of what it leaks."
        if not rows and not Stage(stage).live:
            return nothing_known(why_nothing)
        return f"Nothing is known yet of what {who[:1].lower() + who[1:]} can see."
    best = max(
        honest or on_images,
        key=lambda name: (
            on_images[name]["recovered"] / on_images[name]["images"],
            on_images[name]["median"] or 0.0,
        ),
    )
    row = on_images[best]
    images = f"{row['images']:,} {scale.noun if row['images'] == 1 else scale.nouns}"
    limit = scale.limit_in_full(row["threshold"] or 0)
    told = best if honest else f"{best}, an oracle"
    guessing = f"guessing the data mean gives {scale.written(row['baseline'])}"
    if row["recovered"]:
        what = f"{row['recovered']:,} of {images}"
        return f"{who} has recovered {what}{far}, to {limit} or better ({told}); {guessing}."
    return (
        f"{who} has recovered none of {images}{far} to {limit}; {told} came "
        f"closest with a median of {scale.written(row['median'])}, and {guessing}."
    )


def _who(threat: Record | None, *, honest: bool) -> str:
    """Return who listens; an attack that made no use of the private labels is no oracle's."""
    parts = (text((threat or {}).get("name"), 60) or "adversary").split("+")
    name = "+".join(part for part in parts if not (honest and part == "labels"))
    who = adversary(None, name)
    return who[:1].upper() + who[1:]
