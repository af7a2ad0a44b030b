"""What came out of a run, in one document."""

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import cast

from fedsim.files import Record, replace_json
from fedsim.quality import baseline_values, examples, modality_of
from fedsim.records import RunDirectory
from fedsim.schemas.document import RunStatus
from fedsim.schemas.statistics import Medians
from fedsim.schemas.summary import BaselineMedians, Leakage, Summary, Timing, Utility
from fedsim.stages.among_peers import among_peers
from fedsim.stages.spreads import spread


def summarize(
    run: RunDirectory,
    *,
    experiment: str,
    engine: str,
    seed: int,
    weights_sha256: str | None,
    status: str,
    seconds: Mapping[str, float],
) -> Record:
    """Write `summary.json` from the rounds and scores of a run, and return it.

    Args:
        run: The run directory.
        experiment: Name of the experiment.
        engine: What ran the apps.
        seed: Seed of the experiment.
        weights_sha256: Digest of the final weights; None if there are none.
        status: How the run ended: done, interrupted or failed.
        seconds: Wall time: training, attacks, total.
    """
    rounds, scores = run.rounds(), run.scores()
    summary = Summary(
        status=cast(RunStatus, status),  # the model checks it
        experiment=experiment,
        engine=engine,
        seed=seed,
        rounds=max((record["round"] for record in rounds), default=0),
        weights_sha256=weights_sha256,
        views_sha256=run.views_sha256(),
        rounds_without_update=sum(record.get("clients") == [] for record in rounds),
        alarms=sum(len(record.get("alarms", ())) for record in rounds),
        utility=utility(rounds),
        **privacy(rounds),
        leakage=leakage(scores),
        peers=among_peers(run),
        failed_attacks=_count(scores, "failed"),
        unfinished_attacks=_count(scores, "unfinished"),
        unscored_attacks=_count(scores, "unscored"),
        seconds=Timing(
            training=seconds["training"], attacks=seconds["attacks"], total=seconds["total"]
        ),
    ).model_dump(mode="json")
    replace_json(run.summary, summary)
    return summary


def utility(rounds: Iterable[Record]) -> Utility:
    """Return accuracy and loss of the last evaluation, if there was one."""
    evaluated = [record for record in rounds if record.get("accuracy") is not None]
    last = evaluated[-1] if evaluated else {}
    return Utility(accuracy=last.get("accuracy"), loss=last.get("loss"), round=last.get("round"))


def privacy(rounds: Iterable[Record]) -> Record:
    """Return epsilon, delta and unit after the last round, where there is an account of them."""
    keys = ("epsilon", "delta", "privacy_unit")
    accounts = [{key: record.get(key) for key in keys} for record in rounds]
    known = [account for account in accounts if account["delta"] is not None]
    return known[-1] if known else {}


def leakage(scores: Iterable[Record]) -> list[Leakage]:
    """Return what each attack got, a row per attack, threat and defense, in order of name.

    Whatever an attack missed stays in the counts: failed attacks and private images without a
    guess are images not recovered. Unscored attacks are left out: nothing is known of them.
    """
    groups: dict[tuple[str, str, str], list[Record]] = {}
    for score in scores:
        if score["status"] != "unscored":
            key = (score["attack"], score["threat"], score["defense"])
            groups.setdefault(key, []).append(score)
    return [_row(groups[key]) for key in sorted(groups)]


def _row(scores: Sequence[Record]) -> Leakage:
    first = scores[0]
    images = [image for score in scores for image in examples(score)]
    num_images = sum(score["batch_size"] for score in scores)
    num_recovered = sum(image["recovered"] for image in images)
    guesses_images = bool(images) or all(score["status"] == "failed" for score in scores)
    baselines = _baselines(scores)
    return Leakage(
        attack=first["attack"],
        threat=first["threat"],
        defense=first["defense"],
        victims=len(scores),
        failed=_count(scores, "failed"),
        unfinished=_count(scores, "unfinished"),
        num_images=num_images,
        num_guessed=sum(image["guess"] is not None for image in images),
        num_recovered=num_recovered,
        psnr_db=spread(image.get("psnr_db") for image in images),
        ssim=spread(image.get("ssim") for image in images),
        mse=spread((image.get("mse") for image in images), lower_is_better=True),
        label_accuracy=_weighted(scores, "label_accuracy"),
        success_rate=num_recovered / num_images if guesses_images and num_images else None,
        success_threshold_db=first["success_threshold_db"],
        baselines=baselines,
        baseline_psnr_db=baselines.data_mean.psnr_db,
        seconds_per_victim=fmean(score["seconds"] for score in scores),
        **_details(scores, images),
        **_accuracy(scores, images, num_images),
    )


def _accuracy(scores: Sequence[Record], examples: Sequence[Record], num_private: int) -> Record:
    """Return what is said of texts and rows alone."""
    modality = modality_of(scores[0])
    if modality == "image":
        return {}
    guesses = [value for score in scores for value in baseline_values(score)]
    return {
        "modality": modality,
        "accuracy": spread(one["accuracy"] for one in examples),
        "exact": sum(one["exact"] for one in examples) / num_private if num_private else None,
        "baseline_accuracy": median(guesses) if guesses else None,
        "success_accuracy": scores[0]["success_accuracy"],
    } | {
        name: spread(one.get(name) for one in examples) for name in ("rouge1", "rouge2", "rouge_l")
    }


def _details(scores: Sequence[Record], images: Sequence[Record]) -> Record:
    """Return what scores of earlier versions do not say; absent then, never zero."""
    guessed = [image for image in images if image["guess"] is not None]
    found = [image["identified"] for image in guessed if image.get("identified") is not None]
    distinct = [score.get("num_distinct") for score in scores]
    counts = ("distinct_recovered", "certified", "certified_wrong")
    return {
        "registered_psnr_db": spread(image.get("registered_psnr_db") for image in images),
        "lpips": spread((image.get("lpips") for image in images), lower_is_better=True),
        "lpips_reason": next((r for score in scores if (r := score.get("lpips_reason"))), None),
        "identified": fmean(found) if found else None,
        "pool_size": min(score["pool_size"] for score in scores if score.get("pool_size"))
        if found
        else None,
        "label_set_accuracy": _mean(score.get("label_set_accuracy") for score in scores),
        "label_count_accuracy": _weighted(scores, "label_count_accuracy"),
        "copies": {
            whose: sum(score.get("copies", {}).get(whose, 0) for score in scores)
            for whose in ("private", "guesses", "public")
        },
        "num_distinct": None if None in distinct else sum(one or 0 for one in distinct),
    } | {name: sum(score.get(name, 0) for score in scores) for name in counts}


def _weighted(scores: Sequence[Record], key: str) -> float | None:
    """Return the mean over private images of a share that some scores have."""
    known = [score for score in scores if score.get(key) is not None]
    if not known:
        return None
    right: float = sum(score[key] * score["batch_size"] for score in known)
    num_images: int = sum(score["batch_size"] for score in known)
    return min(1.0, right / num_images)  # a sum of shares may round above one


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def _baselines(scores: Sequence[Record]) -> BaselineMedians:
    def medians(baseline: str) -> Medians:
        values: dict[str, float | None] = {}
        for metric in ("mse", "psnr_db", "ssim", "registered_psnr_db"):
            found = (score["baselines"][baseline].get(metric, []) for score in scores)
            known = [value for values in found for value in values]
            values[metric] = median(known) if known else None
        return Medians(**values)

    return BaselineMedians(
        random_guess=medians("random_guess"),
        data_mean=medians("data_mean"),
        nearest_public=medians("nearest_public"),
    )


def _count(scores: Iterable[Record], status: str) -> int:
    return sum(score["status"] == status for score in scores)
