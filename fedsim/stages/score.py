"""Compare every reconstruction with the sealed truth, and with guesses that need no attack."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from attacks.metrics.assignment import match
from attacks.metrics.images import mse, psnr_db, ssim
from attacks.metrics.labels import class_overlap, multiset_overlap
from attacks.metrics.neighbours import COPY_MSE, distances, first_copies, identified
from attacks.metrics.perceptual import NoBackboneError, lpips
from attacks.metrics.registration import registered_psnr_db, registration_window
from attacks.observation import Reconstruction, Tensors
from fedsim.examples import Reader, read_data
from fedsim.files import Record, finite
from fedsim.quality import SCALES
from fedsim.records import RunDirectory
from fedsim.schemas.document import Status
from fedsim.schemas.scores import (
    Baseline,
    Baselines,
    Copies,
    ImageScore,
    Quality,
    RowScore,
    Score,
    TextScore,
)
from fedsim.seeds import stream
from fedsim.stages.score_others import (
    misshapen,
    row_baselines,
    score_rows,
    score_texts,
    text_baselines,
    texts_of,
)
from fedsim.truth import unseal, unseal_update, unsealed_before

EARLIER_IMAGES = 500
"""Private images of earlier rounds, at most, among which a guess must find its own."""


def score(
    run: RunDirectory,
    *,
    public_sample: Tensor,
    seed: int,
    threat: str,
    defense: str,
    success_threshold_db: float,
    success_accuracy: float = 0.9,
    tolerance: float = 0.05,
) -> list[Record]:
    """Score every reconstruction of a run anew, in place of all earlier scores; see `score_one`."""
    scores = [
        score_one(
            run,
            record,
            public_sample=public_sample,
            seed=seed,
            threat=threat,
            defense=defense,
            success_threshold_db=success_threshold_db,
            success_accuracy=success_accuracy,
            tolerance=tolerance,
        )
        for record in run.reconstruction_records()
    ]
    run.rewrite_log("scores", scores)
    return scores


def score_one(
    run: RunDirectory,
    record: Record,
    *,
    public_sample: Tensor,
    seed: int,
    threat: str,
    defense: str,
    success_threshold_db: float,
    success_accuracy: float = 0.9,
    tolerance: float = 0.05,
) -> Record:
    """Return the score of one reconstruction, as `scores.jsonl` holds it.

    Guesses are clamped to [0, 1] (which never takes them further from the truth) and paired with
    the private images one to one. A guess that holds NaN or infinity, and one beyond the size of
    the private batch, pairs with nothing: choosing the best of a surplus would take the truth's
    help. A guess of another shape than the truth is a failed attack, and noted as an event.

    `docs/metrics.md` says what each value means.

    Args:
        run: Holds the reconstruction and the truth.
        record: The reconstruction's record.
        public_sample: Images for the baselines, shape (N, C, H, W), pixels in [0, 1].
        seed: The experiment's; the random guess derives from it.
        threat: Name of the threat model.
        defense: Name of the defense in force.
        success_threshold_db: PSNR from which an image counts as recovered.
        success_accuracy: Accuracy from which a text or a row does.
        tolerance: Share of its range by which a number of a table may be off.
    """
    reader = read_data(run)
    guess = run.read_reconstruction(record)
    truth = unseal(run, record["round"], record["victim"])
    if truth is not None and not len(truth[0]):
        judged, guesses = _empty_batch(run, record), Baselines()
    elif truth is None:
        judged, guesses = _no_truth(run, record), Baselines()
    elif reader.modality != "image":
        judged, guesses = (
            _judge_others(run, record, guess, truth, reader, success_accuracy, tolerance),
            Baselines(),
        )
    else:
        pool = _pool(run, record["round"], truth[0], public_sample)
        judged = _judge(run, record, guess, *truth, pool, success_threshold_db)
        rng = stream(seed, "baseline", record["observation"])
        guesses = baselines(truth[0], public_sample, rng)
    beside: dict[Baseline, list[float]] = {}
    if truth is not None and len(truth[0]) and reader.modality != "image":
        rng = stream(seed, "baseline", record["observation"])
        beside = (
            text_baselines(truth, public_sample, reader, rng)
            if reader.modality == "text"
            else row_baselines(truth[0], public_sample, reader, tolerance, rng)
        )
    update_error, weights_error = isolation_errors(run, record)
    return Score(
        observation=record["observation"],
        round=record["round"],
        victim=record["victim"],
        attack=record["attack"],
        threat=threat,
        defense=defense,
        status=judged.status,
        reason=judged.reason,
        batch_size=None if truth is None else len(truth[0]),
        images=list(judged.images),
        modality=reader.modality,
        texts=list(judged.texts),
        rows=list(judged.rows),
        success_accuracy=None if reader.modality == "image" else success_accuracy,
        tolerance=tolerance if reader.modality == "table" else None,
        baseline_accuracy=beside,
        label_accuracy=judged.label_accuracy,
        success_rate=judged.success_rate,
        success_threshold_db=success_threshold_db,
        baselines=guesses,
        matching_loss=guess.matching_loss,
        steps=guess.steps,
        seconds=guess.seconds,
        label_set_accuracy=judged.label_set_accuracy,
        label_count_accuracy=judged.label_count_accuracy,
        registration_window=judged.registration_window,
        pool_size=judged.pool_size,
        lpips_reason=judged.lpips_reason,
        copies=judged.copies,
        num_distinct=judged.num_distinct,
        distinct_recovered=judged.distinct_recovered,
        certified=judged.certified,
        certified_wrong=judged.certified_wrong,
        update_error=update_error,
        weights_error=weights_error,
    ).model_dump(mode="json")


def isolation_errors(run: RunDirectory, record: Record) -> tuple[float | None, float | None]:
    """Return how far an update, and its weights, that were told between peers are from the truth.

    Both are root mean squares over that of the truth, in the coordinates that were told. None where
    no true update was sealed, or nothing was told.
    """
    sealed = unseal_update(run, record["round"], record["victim"])
    if sealed is None:
        return None, None
    seen = run.read_observation(record["observation"])
    return _relative(seen.update, sealed[0], seen.visible), _relative(seen.weights, sealed[1])


def _relative(
    found: Tensors | None, truth: Tensors, visible: Tensors | None = None
) -> float | None:
    if not found:
        return None
    parts = [slice(None) if visible is None else visible[name].flatten() for name in found]
    pairs = [
        (found[name].double().flatten()[part], truth[name].double().flatten()[part])
        for name, part in zip(found, parts, strict=True)
    ]
    error = sum(float((one - true).square().sum()) for one, true in pairs)
    length = sum(float(true.square().sum()) for _, true in pairs)
    return finite((error / length) ** 0.5) if length else None


def baselines(truth: Tensor, public_sample: Tensor, rng: torch.Generator) -> Baselines:
    """Score what guessing without the update achieves; see `Baselines` for each guess.

    Args:
        truth: Private images, shape (B, C, H, W).
        public_sample: Shape (N, C, H, W).
        rng: Draws the random guess.
    """
    noise = torch.rand(truth.shape, generator=rng)
    order = [guess for _, guess in match(noise, truth)]
    distance = torch.cdist(truth.double().flatten(1), public_sample.double().flatten(1))
    return Baselines(
        random_guess=_quality(noise[order], truth),
        data_mean=_quality(public_sample.mean(dim=0).expand_as(truth), truth),
        nearest_public=_quality(public_sample[distance.argmin(dim=1)], truth),
    )


@dataclass(frozen=True, kw_only=True)
class _Judged:
    """What a score says of the guess; the fields are those of `Score`."""

    status: Status
    reason: str | None = None
    images: tuple[ImageScore, ...] = ()
    texts: tuple[TextScore, ...] = ()
    rows: tuple[RowScore, ...] = ()
    label_accuracy: float | None = None
    success_rate: float | None = None
    label_set_accuracy: float | None = None
    label_count_accuracy: float | None = None
    registration_window: tuple[int, int] | None = None
    pool_size: int = 0
    lpips_reason: str | None = None
    copies: Copies = field(default_factory=Copies)
    num_distinct: int | None = None
    distinct_recovered: int = 0
    certified: int = 0
    certified_wrong: int = 0


@dataclass(frozen=True, kw_only=True)
class _Pool:
    """Images that a guess could be of, beside the private batch.

    Attributes:
        public: The public sample, (N, C, H, W).
        earlier: Private images of earlier rounds that are not in this batch.
    """

    public: Tensor
    earlier: Tensor

    @property
    def images(self) -> Tensor:
        """All of them."""
        return torch.cat([self.public, self.earlier])


def _pool(run: RunDirectory, server_round: int, truth: Tensor, public: Tensor) -> _Pool:
    earlier = unsealed_before(run, server_round, EARLIER_IMAGES)
    if earlier is None or earlier.shape[1:] != truth.shape[1:]:
        return _Pool(public=public, earlier=truth[:0])
    # a client that holds few examples trains on the same ones again
    again = (distances(earlier, truth) <= COPY_MSE).any(dim=1)
    return _Pool(public=public, earlier=earlier[~again])


def _title(record: Record) -> str:
    return f"{record['attack']} on {record['observation']}"


def _no_truth(run: RunDirectory, record: Record) -> _Judged:
    reason = f"no truth of {record['victim']} in round {record['round']} was sealed"
    run.append_event("not-scored", f"{_title(record)}: {reason}")
    return _Judged(status="unscored", reason=reason)


def _empty_batch(run: RunDirectory, record: Record) -> _Judged:
    reason = f"the batch of {record['victim']} in round {record['round']} was empty: pure noise"
    run.append_event("not-scored", f"{_title(record)}: {reason}")
    return _Judged(status="unscored", reason=reason)


def _judge(
    run: RunDirectory,
    record: Record,
    guess: Reconstruction,
    truth: Tensor,
    labels: Tensor,
    pool: _Pool,
    threshold_db: float,
) -> _Judged:
    status, reason = record["status"], record["reason"]
    firsts = first_copies(truth)
    num_distinct = len(set(firsts))
    private = len(truth) - num_distinct
    if status == "failed":
        return _Judged(
            status="failed",
            reason=reason,
            success_rate=0.0,
            copies=Copies(private=private),
            num_distinct=num_distinct,
        )
    guessed = None if guess.labels is None else guess.labels.cpu()[: len(truth)]
    set_accuracy = None if guessed is None else class_overlap(guessed, labels)
    count_accuracy = None if guessed is None else multiset_overlap(guessed, labels)
    if guess.inputs is None:
        return _Judged(
            status=status,
            reason=reason,
            label_accuracy=count_accuracy,
            label_set_accuracy=set_accuracy,
            label_count_accuracy=count_accuracy,
            copies=Copies(private=private),
            num_distinct=num_distinct,
        )
    if guess.inputs.shape[1:] != truth.shape[1:]:
        shapes = tuple(tuple(one.shape[1:]) for one in (guess.inputs, truth))
        reason = f"the guessed images have shape {shapes[0]}, the private ones {shapes[1]}"
        run.append_event("misshapen-guess", f"{_title(record)}: {reason}")
        return _Judged(
            status="failed",
            reason=reason,
            success_rate=0.0,
            copies=Copies(private=private),
            num_distinct=num_distinct,
        )
    usable = _usable(guess.inputs, len(truth))
    images, lpips_reason = _images(guess, guess.inputs, usable, truth, labels, pool, threshold_db)
    right = sum(image.guessed_label == image.label for image in images)
    certified = 0 if guess.certified is None else int(guess.certified.sum())
    proved = sum(
        bool(image.certified and image.recovered) and image.guessed_label in (None, image.label)
        for image in images
    )
    pixels = guess.inputs[usable].cpu().clamp(0, 1)
    return _Judged(
        status=status,
        reason=reason or _left_out(len(guess.inputs), len(usable), len(truth)),
        images=tuple(images),
        label_accuracy=None if guess.labels is None else right / len(truth),
        success_rate=sum(image.recovered for image in images) / len(truth),
        label_set_accuracy=set_accuracy,
        label_count_accuracy=count_accuracy,
        registration_window=registration_window(tuple(truth.shape[-2:])),
        pool_size=len(pool.images),
        lpips_reason=lpips_reason,
        copies=_copies(pixels, private, pool.public),
        num_distinct=num_distinct,
        distinct_recovered=len({firsts[image.truth] for image in images if image.recovered}),
        certified=certified,
        certified_wrong=certified - proved,
    )


def _judge_others(
    run: RunDirectory,
    record: Record,
    guess: Reconstruction,
    truth: tuple[Tensor, Tensor],
    reader: Reader,
    success_accuracy: float,
    tolerance: float,
) -> _Judged:
    """Judge a guess at texts or rows."""
    num_private, labels = len(truth[0]), truth[1]
    private = texts_of(truth, reader) if reader.modality == "text" else truth[0]
    listed = private.tolist()
    firsts = [listed.index(one) for one in listed]
    common = _Judged(
        status=record["status"],
        reason=record["reason"],
        copies=Copies(private=num_private - len(set(firsts))),
        num_distinct=len(set(firsts)),
    )
    if record["status"] == "failed":
        return replace(common, success_rate=0.0)
    if labels.ndim == 1 and guess.labels is not None and guess.labels.ndim == 1:
        guessed = guess.labels.cpu()[:num_private]
        count_accuracy = multiset_overlap(guessed, labels)
        common = replace(
            common,
            label_set_accuracy=class_overlap(guessed, labels),
            label_count_accuracy=count_accuracy,
            label_accuracy=count_accuracy if guess.inputs is None else None,
        )
    if guess.inputs is None:
        return common
    if (fault := misshapen(guess.inputs, private, reader.modality)) is not None:
        run.append_event("misshapen-guess", f"{_title(record)}: {fault}")
        return replace(common, status="failed", reason=fault, success_rate=0.0)
    usable = _usable(guess.inputs.double(), num_private)
    found: Sequence[TextScore | RowScore]
    if reader.modality == "text":
        texts = score_texts(guess, guess.inputs, usable, private, labels, reader, success_accuracy)
        found, common = texts, replace(common, texts=tuple(texts))
    else:
        rows = score_rows(
            guess, guess.inputs, usable, private, labels, reader, success_accuracy, tolerance
        )
        found, common = rows, replace(common, rows=tuple(rows))
    certified = 0 if guess.certified is None else int(guess.certified.sum())
    proved = sum(
        bool(one.certified and one.exact) and one.guessed_label in (None, one.label)
        for one in found
    )
    right = sum(one.guessed_label == one.label for one in found)
    told = labels.ndim == 1 and guess.labels is not None and guess.labels.ndim == 1
    return replace(
        common,
        reason=common.reason
        or _left_out(len(guess.inputs), len(usable), num_private, SCALES[reader.modality].nouns),
        label_accuracy=right / num_private if told else None,
        success_rate=sum(one.recovered for one in found) / num_private,
        distinct_recovered=len({firsts[one.truth] for one in found if one.recovered}),
        certified=certified,
        certified_wrong=certified - proved,
    )


def _copies(guesses: Tensor, private: int, public: Tensor) -> Copies:
    return Copies(
        private=private,
        guesses=len(guesses) - len(set(first_copies(guesses))),
        public=int((distances(guesses, public) <= COPY_MSE).any(dim=1).sum()),
    )


def _usable(inputs: Tensor, batch_size: int) -> list[int]:
    finite = torch.isfinite(inputs).flatten(1).all(dim=1).tolist()
    return [place for place, ok in enumerate(finite[:batch_size]) if ok]


def _left_out(
    num_guesses: int, num_usable: int, batch_size: int, nouns: str = "images"
) -> str | None:
    if num_guesses > batch_size:
        return f"{num_guesses} guesses for {batch_size} {nouns}: only the first {batch_size} count"
    if num_usable < num_guesses:
        return f"{num_guesses - num_usable} of {num_guesses} guesses hold NaN or infinity"
    return None


def _images(
    guess: Reconstruction,
    inputs: Tensor,
    usable: list[int],
    truth: Tensor,
    labels: Tensor,
    pool: _Pool,
    threshold_db: float,
) -> tuple[list[ImageScore], str | None]:
    """Return one score per private image, in order, and why there is no LPIPS, if there is none.

    An image without a guess is a miss.
    """
    pixels = inputs.cpu().clamp(0, 1)
    pairs = [(row, usable[column]) for row, column in match(pixels[usable], truth)]
    own = identified(pixels.nan_to_num(0.0), truth, pairs, pool.images)
    guessed, private = pixels[[place for _, place in pairs]], truth[[row for row, _ in pairs]]
    quality, (perceptual, lpips_reason) = _quality(guessed, private), _lpips(guessed, private)
    scores = {row: _miss(row, int(labels[row])) for row in range(len(truth))}
    for index, (row, place) in enumerate(pairs):
        scores[row] = ImageScore(
            truth=row,
            guess=place,
            mse=quality.mse[index],
            psnr_db=quality.psnr_db[index],
            ssim=quality.ssim[index],
            label=int(labels[row]),
            guessed_label=None if guess.labels is None else int(guess.labels[place]),
            recovered=quality.psnr_db[index] >= threshold_db,
            registered_psnr_db=quality.registered_psnr_db[index],
            lpips=perceptual[index],
            identified=row in own,
            certified=None if guess.certified is None else bool(guess.certified[place]),
        )
    return list(scores.values()), lpips_reason


def _lpips(guesses: Tensor, truths: Tensor) -> tuple[Sequence[float | None], str | None]:
    try:
        return lpips(guesses, truths).tolist(), None
    except NoBackboneError as reason:
        return [None] * len(truths), str(reason)


def _miss(row: int, label: int) -> ImageScore:
    return ImageScore(
        truth=row,
        guess=None,
        mse=None,
        psnr_db=None,
        ssim=None,
        label=label,
        guessed_label=None,
        recovered=False,
    )


def _quality(guess: Tensor, truth: Tensor) -> Quality:
    return Quality(
        mse=mse(guess, truth).tolist(),
        psnr_db=psnr_db(guess, truth).tolist(),
        ssim=ssim(guess, truth).tolist(),
        registered_psnr_db=registered_psnr_db(guess, truth).tolist(),
    )
