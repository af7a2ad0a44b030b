"""Whose images the adversary of each cell gets, of all that any cell is after."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median

from fedsim.files import Record, digest, read_json
from fedsim.quality import examples, measured, modality_of, values
from fedsim.reach import number_of, reach_of, updates_wanted
from fedsim.records import EVERYBODY, RunDirectory
from fedsim.schemas.peers import PeersSummary
from fedsim.schemas.sweep import SweepCell, SweepPart, SweepReach
from fedsim.stages.among_peers import HOW, among_peers, how_of
from fedsim.sweep.rows import Measured
from fedsim.truth import unseal

Update = tuple[int, int, int]
"""Seed, round and client."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """What the strongest attacker of a cell got of one update.

    Attributes:
        update: Which.
        num_images: Private images behind it.
        how: How the adversary got hold of it; None if it did not.
        distance: Links between its client and the adversary; None if out of reach.
        score: Of the attack; None where there was none.
    """

    update: Update
    num_images: int
    how: str | None
    distance: int | None
    score: Record | None

    @property
    def values(self) -> list[float]:
        """How close it came, one per guessed example."""
        return values(self.score) if self.score else []


def with_reach(
    rows: Sequence[SweepCell], measured: Mapping[int, Sequence[Measured]]
) -> tuple[list[SweepCell], bool]:
    """Return rows that say who listened where, and whether all attacked the same images.

    Args:
        rows: One per cell.
        measured: What the runs of each cell hold, by its number.
    """
    wanted, same = wanted_by_any(measured)
    return [
        row.model_copy(update={"reach": _reach(row, measured[row.number], wanted)}) for row in rows
    ], same


def wanted_by_any(measured: Mapping[int, Sequence[Measured]]) -> tuple[dict[Update, int], bool]:
    """Return the images behind each update that any cell is after, and whether they are the same.

    Updates of one client in one round have the same images in all cells, unless cells change data,
    partition or batch size.
    """
    sealed: dict[Update, tuple[int, str]] = {}
    same = True
    for runs in measured.values():
        for one in runs:
            if one.leakage is None:
                continue
            for number, client in updates_wanted(one.leakage):
                truth = unseal(one.leakage, number, f"client-{client}")
                if truth is None:
                    continue
                found = (len(truth[0]), digest({"inputs": truth[0]}))
                same &= sealed.setdefault((one.seed, number, client), found) == found
    return {update: num_images for update, (num_images, _) in sorted(sealed.items())}, same


def strongest_of(row: SweepCell) -> str | None:
    """Return the attacker of a cell that recovered most; of equal ones the one that came closer.

    As on the page of a run; `SweepCell.strongest` goes by the median alone.
    """
    scored = {
        role: (one.num_recovered, got.value)
        for role, one in row.attackers.items()
        if (got := measured(one)) is not None
    }
    return max(scored, key=lambda role: scored[role], default=None)


def sights(row: SweepCell, runs: Sequence[Measured], wanted: Mapping[Update, int]) -> list[Sight]:
    """Return what the strongest attacker of a cell got of each update that any cell is after."""
    found = []
    attacker = strongest_of(row)
    for one in runs:
        if one.leakage is None:
            continue
        how = {
            (seen["round"], number_of(seen["sender"])): how_of(seen)
            for seen in one.leakage.observation_records()
            if seen["sender"] != EVERYBODY  # a mean gives nobody in particular away
        }
        scores = {
            (score["round"], number_of(score["victim"])): score
            for score in one.leakage.scores()
            if score["attack"] == attacker
            and score["status"] != "unscored"
            and score["victim"] != EVERYBODY
        }
        reach = reach_of(one.leakage)
        for update, num_images in wanted.items():
            seed, number, client = update
            if seed == one.seed:
                found.append(
                    Sight(
                        update=update,
                        num_images=num_images,
                        how=how.get((number, client)),
                        distance=0 if reach is None else reach.distances(number).get(client),
                        score=scores.get((number, client)),
                    )
                )
    return found


def _reach(
    row: SweepCell, runs: Sequence[Measured], wanted: Mapping[Update, int]
) -> SweepReach | None:
    first = next((one.leakage for one in runs if one.leakage is not None), None)
    if first is None:
        return None
    seen = sights(row, runs, wanted)
    peers = among_peers(first)
    trained = [found for one in runs if (found := _peers(one.utility)) is not None]
    accuracy = [one.peer_accuracy for one in trained if one.peer_accuracy is not None]
    return SweepReach(
        attacker=strongest_of(row),
        adversary=read_json(first.root / "threat.json")["name"],
        protocol=peers.protocol if peers else "server",
        topology=peers.topology if peers else "server",
        hears=peers.hears if peers else None,
        whole=part_of(seen),
        rounds=_parts(seen, lambda one: one.update[1]),
        distances=_parts(seen, lambda one: one.distance),
        update_error=_median([_error(one) for one in seen]),
        consensus_distance=_mean([one.consensus_distance for one in trained]),
        worst_peer=_mean([one.worst for one in accuracy]),
        best_peer=_mean([one.best for one in accuracy]),
        bytes_sent=_mean([_sent(one.leakage) for one in runs if one.leakage is not None]),
    )


def _peers(run: RunDirectory | None) -> PeersSummary | None:
    return None if run is None else among_peers(run)


def _sent(run: RunDirectory) -> float | None:
    rounds = [one for one in run.rounds() if one.get("clients")]
    said = sum(one.get("bytes_between") or one.get("bytes_up", 0) for one in rounds)
    senders = sum(len(one["clients"]) for one in rounds)
    return said / senders if senders else None


def _parts(seen: Sequence[Sight], key: Callable[[Sight], int | None]) -> dict[str, SweepPart]:
    groups: dict[int, list[Sight]] = {}
    for one in seen:
        if (name := key(one)) is not None:
            groups.setdefault(name, []).append(one)
    return {str(name): part_of(group) for name, group in sorted(groups.items())}


def part_of(seen: Sequence[Sight]) -> SweepPart:
    """Return what was got of some updates."""
    found = [value for one in seen for value in one.values]
    private = [example for one in seen if one.score for example in examples(one.score)]
    modality = next((modality_of(one.score) for one in seen if one.score), "image")
    middle = median(found) if found else None
    ways = [one.how for one in seen]
    return SweepPart(
        num_images=sum(one.num_images for one in seen),
        num_attacked=sum(one.num_images for one in seen if one.score is not None),
        num_recovered=sum(example["recovered"] for example in private),
        psnr_db=middle if modality == "image" else None,
        isolated={how: ways.count(how) for how in HOW if how in ways},
        modality=modality,
        accuracy=None if modality == "image" else middle,
    )


def _error(one: Sight) -> float | None:
    return None if one.score is None or one.how == "heard" else one.score.get("update_error")


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
