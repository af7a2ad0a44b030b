"""What came out of a run without a server, besides what every run has."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import median

from fedsim.files import Record
from fedsim.quality import baseline_values, examples, modality_of, values
from fedsim.reach import Reach, number_of, reach_of
from fedsim.records import RunDirectory
from fedsim.schemas.peers import DistanceLeakage, Isolation, PeersSummary
from fedsim.schemas.statistics import Spread
from fedsim.stages.spreads import spread

HOW = ("heard", "exact", "estimated")
"""Ways to get hold of an update, the surest first."""

CERTAIN = frozenset({"heard", "exact"})
"""Ways that leave no doubt, as far as the adversary knows."""
WRONG, WRONG_BY = 0.01, 10.0
"""Of an update that is taken for certain: wrong from this relative error on, if it is that many
times the error that was expected."""

Update = tuple[int, int]
"""Round and peer."""


def among_peers(run: RunDirectory) -> PeersSummary | None:
    """Return what came out of a run without a server; None for any other."""
    reach = reach_of(run)
    if reach is None:
        return None
    evaluated = [one for one in reach.rounds if one.get("consensus_distance") is not None]
    last = evaluated[-1] if evaluated else {}
    observations, scores = run.observation_records(), run.scores()
    first = first_round(reach)
    links = reach.links(first)
    return PeersSummary(
        topology=reach.topology["name"],
        protocol=run.read_config()["protocol"]["name"],
        consensus_distance=last.get("consensus_distance"),
        peer_accuracy=spread(last.get("peer_accuracy", [])),
        messages=sum(one.get("messages", 0) for one in reach.rounds),
        bytes_between=sum(one.get("bytes_between", 0) for one in reach.rounds),
        hears=len(reach.heard(first)) / len(links) if links else 0.0,
        isolation=isolation(observations, scores),
        by_distance=by_distance(reach, observations, scores),
    )


def first_round(reach: Reach) -> int:
    """Return the first round in which the adversary listened."""
    return min((record["round"] for record in reach.listened()), default=1)


def how_of(observation: Record) -> str:
    """Return how the adversary got hold of an update."""
    return observation.get("isolated") or "heard"


def isolation(observations: Sequence[Record], scores: Sequence[Record]) -> list[Isolation]:
    """Return what the adversary got hold of, a row per way."""
    scored = {score["observation"]: score for score in scores}
    rows = []
    for how in HOW:
        these = [one for one in observations if how_of(one) == how]
        judged = [scored[one["id"]] for one in these if one["id"] in scored]
        if these:
            rows.append(
                Isolation(
                    how=how,
                    updates=len(these),
                    expected_error=_errors(these, "expected_error"),
                    update_error=_errors(judged, "update_error"),
                    weights_error=_errors(judged, "weights_error"),
                    mistaken=sum(is_mistaken(one, scored.get(one["id"])) for one in these),
                )
            )
    return rows


def is_mistaken(observation: Record, score: Record | None) -> bool:
    """Return whether an update that the adversary took for certain was something else."""
    error = None if score is None else score.get("update_error")
    if error is None or how_of(observation) not in CERTAIN:
        return False
    expected = observation.get("expected_error") or 0.0
    return bool(error > max(WRONG, WRONG_BY * expected))


def _errors(records: Iterable[Record], key: str) -> Spread | None:
    return spread((one.get(key) for one in records), lower_is_better=True)


def by_distance(
    reach: Reach, observations: Sequence[Record], scores: Sequence[Record]
) -> list[DistanceLeakage]:
    """Return what each attack on examples got, by distance from the adversary, nearest first."""
    there: dict[int | None, list[Update]] = {}
    for record in reach.listened():
        distances = reach.distances(record["round"])
        for peer in reach.victims:
            if peer in record["clients"]:
                there.setdefault(distances.get(peer), []).append((record["round"], peer))
    how = {(one["round"], number_of(one["sender"])): how_of(one) for one in observations}
    return [
        _at_distance(attack, distance, updates, how, judged)
        for attack, judged in _by_attack(scores).items()
        for distance, updates in sorted(there.items(), key=_nearest_first)
    ]


def _nearest_first(item: tuple[int | None, list[Update]]) -> tuple[bool, int]:
    return item[0] is None, item[0] or 0


def _by_attack(scores: Iterable[Record]) -> dict[str, dict[Update, Record]]:
    """Return the scores of each attack that guesses examples, by round and peer."""
    found: dict[str, dict[Update, Record]] = {}
    for score in scores:
        if score["status"] != "unscored":
            update = (score["round"], number_of(score["victim"]))
            found.setdefault(score["attack"], {})[update] = score
    return {
        attack: judged
        for attack, judged in sorted(found.items())
        if any(examples(one) for one in judged.values())
        or all(one["status"] == "failed" for one in judged.values())
    }


def _at_distance(
    attack: str,
    distance: int | None,
    updates: Sequence[Update],
    how: Mapping[Update, str],
    judged: Mapping[Update, Record],
) -> DistanceLeakage:
    ways = [how[update] for update in updates if update in how]
    scores = [judged[update] for update in updates if update in judged]
    modality = modality_of(next(iter(judged.values())))
    found = spread(value for score in scores for value in values(score))
    means = [value for score in scores for value in baseline_values(score)]
    mean = median(means) if means else None
    is_image = modality == "image"
    return DistanceLeakage(
        attack=attack,
        distance=distance,
        peers=len({peer for _, peer in updates}),
        updates=len(updates),
        isolated={one: ways.count(one) for one in HOW if one in ways},
        attacked=len(scores),
        num_images=sum(score["batch_size"] for score in scores),
        num_recovered=sum(one["recovered"] for score in scores for one in examples(score)),
        psnr_db=found if is_image else None,
        baseline_psnr_db=mean if is_image else None,
        modality=modality,
        accuracy=None if is_image else found,
        baseline_accuracy=None if is_image else mean,
    )
