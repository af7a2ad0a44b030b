"""Compare every reconstruction with the sealed truth, and with guesses that need no attack."""

from dataclasses import dataclass

import torch
from torch import Tensor

from attacks.metrics.assignment import match, multiset_overlap
from attacks.metrics.images import mse, psnr_db, ssim
from attacks.observation import Reconstruction
from fedsim.records import Record, RunDirectory
from fedsim.schemas import Baselines, ImageScore, Quality, Score, Status
from fedsim.seeds import stream
from fedsim.truth import unseal


def score(
    run: RunDirectory,
    *,
    public_sample: Tensor,
    seed: int,
    threat: str,
    defense: str,
    success_threshold_db: float,
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
) -> Record:
    """Return the score of one reconstruction, as `scores.jsonl` holds it.

    Guesses are clamped to [0, 1] (which never takes them further from the truth) and paired with
    the private images one to one. A guess that holds NaN or infinity, and one beyond the size of
    the private batch, pairs with nothing: choosing the best of a surplus would take the truth's
    help. A guess of another shape than the truth is a failed attack, and noted as an event.

    Args:
        run: Holds the reconstruction and the truth.
        record: The reconstruction's record.
        public_sample: Images for the baselines, shape (N, C, H, W), pixels in [0, 1].
        seed: The experiment's; the random guess derives from it.
        threat: Name of the threat model.
        defense: Name of the defense in force.
        success_threshold_db: PSNR from which an image counts as recovered.
    """
    guess = run.read_reconstruction(record)
    truth = unseal(run, record["round"], record["victim"])
    if truth is None:
        judged, guesses = _no_truth(run, record), Baselines()
    else:
        judged = _judge(run, record, guess, *truth, success_threshold_db)
        rng = stream(seed, "baseline", record["observation"])
        guesses = baselines(truth[0], public_sample, rng)
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
        label_accuracy=judged.label_accuracy,
        success_rate=judged.success_rate,
        success_threshold_db=success_threshold_db,
        baselines=guesses,
        matching_loss=guess.matching_loss,
        steps=guess.steps,
        seconds=guess.seconds,
    ).model_dump(mode="json")


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
    status: Status
    reason: str | None = None
    images: tuple[ImageScore, ...] = ()
    label_accuracy: float | None = None
    success_rate: float | None = None


def _title(record: Record) -> str:
    return f"{record['attack']} on {record['observation']}"


def _no_truth(run: RunDirectory, record: Record) -> _Judged:
    reason = f"no truth of {record['victim']} in round {record['round']} was sealed"
    run.append_event("not-scored", f"{_title(record)}: {reason}")
    return _Judged(status="unscored", reason=reason)


def _judge(
    run: RunDirectory,
    record: Record,
    guess: Reconstruction,
    truth: Tensor,
    labels: Tensor,
    threshold_db: float,
) -> _Judged:
    status, reason = record["status"], record["reason"]
    if status == "failed":
        return _Judged(status="failed", reason=reason, success_rate=0.0)
    if guess.inputs is None:
        overlap = None if guess.labels is None else multiset_overlap(guess.labels.cpu(), labels)
        return _Judged(status=status, reason=reason, label_accuracy=overlap)
    if guess.inputs.shape[1:] != truth.shape[1:]:
        guessed, private = (tuple(one.shape[1:]) for one in (guess.inputs, truth))
        reason = f"the guessed images have shape {guessed}, the private ones {private}"
        run.append_event("misshapen-guess", f"{_title(record)}: {reason}")
        return _Judged(status="failed", reason=reason, success_rate=0.0)
    usable = _usable(guess.inputs, len(truth))
    images = _images(guess.inputs, guess.labels, usable, truth, labels, threshold_db)
    right = sum(image.guessed_label == image.label for image in images)
    return _Judged(
        status=status,
        reason=reason or _left_out(len(guess.inputs), len(usable), len(truth)),
        images=tuple(images),
        label_accuracy=None if guess.labels is None else right / len(truth),
        success_rate=sum(image.recovered for image in images) / len(truth),
    )


def _usable(inputs: Tensor, batch_size: int) -> list[int]:
    finite = torch.isfinite(inputs).flatten(1).all(dim=1).tolist()
    return [place for place, ok in enumerate(finite[:batch_size]) if ok]


def _left_out(num_guesses: int, num_usable: int, batch_size: int) -> str | None:
    if num_guesses > batch_size:
        return f"{num_guesses} guesses for {batch_size} images: only the first {batch_size} count"
    if num_usable < num_guesses:
        return f"{num_guesses - num_usable} of {num_guesses} guesses hold NaN or infinity"
    return None


def _images(
    inputs: Tensor,
    guessed_labels: Tensor | None,
    usable: list[int],
    truth: Tensor,
    labels: Tensor,
    threshold_db: float,
) -> list[ImageScore]:
    """Return one score per private image, in order; an image without a guess is a miss."""
    pixels = inputs.cpu().clamp(0, 1)
    pairs = [(row, usable[column]) for row, column in match(pixels[usable], truth)]
    scores = {row: _miss(row, int(labels[row])) for row in range(len(truth))}
    quality = _quality(pixels[[guess for _, guess in pairs]], truth[[row for row, _ in pairs]])
    for index, (row, guess) in enumerate(pairs):
        scores[row] = ImageScore(
            truth=row,
            guess=guess,
            mse=quality.mse[index],
            psnr_db=quality.psnr_db[index],
            ssim=quality.ssim[index],
            label=int(labels[row]),
            guessed_label=None if guessed_labels is None else int(guessed_labels[guess]),
            recovered=quality.psnr_db[index] >= threshold_db,
        )
    return list(scores.values())


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
    )
