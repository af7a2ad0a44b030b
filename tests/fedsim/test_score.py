"""What a score says of a guess, good, bad or missing."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attacks.metrics.images import PSNR_CEILING_DB
from attacks.observation import Kind, Observation, Reconstruction
from fedsim.files import Record, read_json
from fedsim.records import RunDirectory
from fedsim.stages.score import score, score_one
from fedsim.truth import seal

LABELS = torch.tensor([3, 1, 3, 0])
OBSERVATION = "round-00001-client-7-to-server"


@pytest.fixture
def truth(rng: torch.Generator) -> Tensor:
    """Four private images, (4, 3, 12, 12)."""
    return torch.rand(4, 3, 12, 12, generator=rng)


@pytest.fixture
def run(tmp_path: Path, truth: Tensor) -> RunDirectory:
    """A run whose client 7 was heard in round 1."""
    run = RunDirectory.create(tmp_path, "one")
    seal(run, 1, "client-7", truth, LABELS)
    run.write_observation(
        Observation(round=1, sender="client-7", receiver="server", kind=Kind.GRADIENT, update={})
    )
    return run


Judge = Callable[[Reconstruction | None], Record]


@pytest.fixture
def judge(run: RunDirectory) -> Judge:
    """Return what scores one guess at the private batch."""

    def judge(guess: Reconstruction | None) -> Record:
        run.write_reconstruction(
            read_json(run.root / "observations" / f"{OBSERVATION}.json"),
            "dlg",
            guess,
            reason="it diverged" if guess is None else None,
            seconds=2.0,
        )
        (record,) = run.reconstruction_records()
        return score_one(run, record, **SETTINGS)

    return judge


SETTINGS: Record = {
    "public_sample": torch.rand(5, 3, 12, 12, generator=torch.Generator().manual_seed(1)),
    "seed": 0,
    "threat": "curious-server",
    "defense": "none",
    "success_threshold_db": 30.0,
}


def test_a_shuffled_exact_guess_recovers_every_image_and_label(judge: Judge, truth: Tensor) -> None:
    order = torch.tensor([2, 0, 3, 1])

    found = judge(Reconstruction(inputs=truth[order], labels=LABELS[order], matching_loss=0.5))

    assert found["success_rate"] == 1.0
    assert found["label_accuracy"] == 1.0
    assert [image["guess"] for image in found["images"]] == [1, 3, 0, 2]
    assert {image["psnr_db"] for image in found["images"]} == {PSNR_CEILING_DB}
    assert [image["label"] for image in found["images"]] == LABELS.tolist()
    assert found["matching_loss"] == 0.5
    json.dumps(found, allow_nan=False)


def test_a_label_counts_only_with_its_own_image(judge: Judge, truth: Tensor) -> None:
    found = judge(Reconstruction(inputs=truth, labels=LABELS.flip(0)))

    # as a multiset all four would be right; beside their images none of them is
    assert found["label_accuracy"] == 0.0


def test_labels_alone_count_as_a_multiset_and_say_nothing_of_images(judge: Judge) -> None:
    found = judge(Reconstruction(inputs=None, labels=torch.tensor([0, 3, 3, 9])))

    assert found["label_accuracy"] == 0.75
    assert found["images"] == []
    assert found["success_rate"] is None
    assert found["status"] == "done"


def test_a_failed_attack_is_a_score_of_zero_beside_its_baselines(judge: Judge) -> None:
    found = judge(None)

    assert (found["status"], found["reason"]) == ("failed", "it diverged")
    assert found["success_rate"] == 0.0
    assert found["label_accuracy"] is None
    assert found["images"] == []
    assert found["batch_size"] == 4
    assert len(found["baselines"]["data_mean"]["psnr_db"]) == 4
    assert found["seconds"] == 2.0


def test_private_images_without_a_guess_are_misses(judge: Judge, truth: Tensor) -> None:
    found = judge(Reconstruction(inputs=truth[[3]], labels=LABELS[[3]]))

    missed = [image for image in found["images"] if image["guess"] is None]
    assert [image["truth"] for image in missed] == [0, 1, 2]
    assert all(image["psnr_db"] is None and not image["recovered"] for image in missed)
    assert found["success_rate"] == 0.25
    assert found["label_accuracy"] == 0.25


def test_a_surplus_of_guesses_is_not_chosen_from_with_the_truth(
    judge: Judge, truth: Tensor
) -> None:
    grey = torch.full_like(truth, 0.5)

    found = judge(Reconstruction(inputs=torch.cat([grey, truth]), labels=None))

    assert found["success_rate"] == 0.0
    assert found["reason"] == "8 guesses for 4 images: only the first 4 count"


def test_a_guess_that_is_no_number_is_a_miss_and_no_crash(judge: Judge, truth: Tensor) -> None:
    guess = truth.clone()
    guess[1, 0, 0, 0] = torch.nan

    found = judge(Reconstruction(inputs=guess, labels=None))

    assert [image["guess"] for image in found["images"]] == [0, None, 2, 3]
    assert found["reason"] == "1 of 4 guesses hold NaN or infinity"
    assert found["success_rate"] == 0.75


def test_nothing_but_numbers_that_are_none_is_a_miss_everywhere(
    judge: Judge, truth: Tensor
) -> None:
    found = judge(Reconstruction(inputs=truth * torch.inf, labels=None))

    assert [image["guess"] for image in found["images"]] == [None] * 4


def test_a_guess_outside_the_pixel_range_is_what_a_screen_would_show(
    judge: Judge, truth: Tensor
) -> None:
    wild = torch.where(truth > 0.5, truth + 7.0, truth)
    shown = wild.clamp(0, 1)

    values = [judge(Reconstruction(inputs=one, labels=None))["images"] for one in (wild, shown)]

    assert values[0] == values[1]


def test_a_misshapen_guess_is_a_failed_attack_and_an_event(
    judge: Judge, run: RunDirectory, truth: Tensor
) -> None:
    found = judge(Reconstruction(inputs=truth[..., :8], labels=None))

    assert (found["status"], found["success_rate"]) == ("failed", 0.0)
    assert "shape (3, 12, 8), the private ones (3, 12, 12)" in found["reason"]
    (event,) = run.events()
    assert event["kind"] == "misshapen-guess"
    assert OBSERVATION in event["message"]


def test_without_the_truth_nothing_is_claimed(judge: Judge, run: RunDirectory) -> None:
    next((run.root / "truth").iterdir()).unlink()

    found = judge(Reconstruction(inputs=torch.rand(4, 3, 12, 12), labels=None))

    assert found["status"] == "unscored"
    assert found["success_rate"] is None
    assert found["batch_size"] is None
    assert found["baselines"]["data_mean"]["psnr_db"] == []
    assert [event["kind"] for event in run.events()] == ["not-scored"]


def test_baselines_are_what_they_are_called(judge: Judge, truth: Tensor) -> None:
    public = SETTINGS["public_sample"]

    found = judge(None)["baselines"]

    mean = (truth - public.mean(dim=0)).square().mean(dim=(1, 2, 3))
    nearest = (truth[:, None] - public).square().mean(dim=(2, 3, 4)).min(dim=1).values
    torch.testing.assert_close(torch.tensor(found["data_mean"]["mse"]), mean)
    torch.testing.assert_close(torch.tensor(found["nearest_public"]["mse"]), nearest)
    # two independent uniform variables differ by 1/6 in the mean square: 7.8 dB
    assert found["random_guess"]["psnr_db"] == pytest.approx([7.8] * 4, abs=1.0)


def test_the_random_guess_depends_on_seed_and_observation_alone(
    judge: Judge, run: RunDirectory, truth: Tensor
) -> None:
    first = judge(None)["baselines"]
    again = judge(Reconstruction(inputs=truth, labels=None))["baselines"]
    (record,) = run.reconstruction_records()
    other = score_one(run, record, **(SETTINGS | {"seed": 1}))["baselines"]

    assert first == again
    assert first["random_guess"] != other["random_guess"]
    assert first["data_mean"] == other["data_mean"]


def test_scoring_anew_replaces_the_scores(judge: Judge, run: RunDirectory, truth: Tensor) -> None:
    run.append_score(judge(None))
    judge(Reconstruction(inputs=truth, labels=LABELS))

    found = score(run, **SETTINGS)

    assert found == run.scores()
    assert [one["status"] for one in found] == ["done"]


def test_a_guess_a_pixel_off_is_found_by_registration_alone(
    judge: Judge, run: RunDirectory
) -> None:
    stripes = torch.arange(4).view(4, 1, 1, 1) / 4 + torch.arange(13) % 2 / 5
    truth = stripes.expand(4, 3, 12, 13)
    seal(run, 1, "client-7", truth[..., :-1], LABELS)

    found = judge(Reconstruction(inputs=truth[..., 1:], labels=None))

    assert found["registration_window"] == [1, 1]
    # stripes 0.2 apart: 14 dB
    assert [image["psnr_db"] for image in found["images"]] == pytest.approx([14.0] * 4, abs=0.1)
    assert {image["registered_psnr_db"] for image in found["images"]} == {PSNR_CEILING_DB}
    assert found["success_rate"] == 0.0
    assert len(found["baselines"]["data_mean"]["registered_psnr_db"]) == 4


def test_labels_are_judged_as_a_set_and_as_counts_whatever_image_they_come_with(
    judge: Judge, truth: Tensor
) -> None:
    found = judge(Reconstruction(inputs=truth, labels=torch.tensor([0, 3, 1, 1])))

    assert found["label_accuracy"] == 0.0
    assert found["label_set_accuracy"] == 1.0
    assert found["label_count_accuracy"] == 0.75
    alone = judge(Reconstruction(inputs=None, labels=torch.tensor([0, 3, 3, 9])))
    assert (alone["label_set_accuracy"], alone["label_count_accuracy"]) == (0.5, 0.75)
    assert judge(Reconstruction(inputs=truth, labels=None))["label_set_accuracy"] is None


def test_no_backbone_is_a_reason_and_never_a_zero(
    judge: Judge, truth: Tensor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    found = judge(Reconstruction(inputs=truth, labels=None))

    assert {image["lpips"] for image in found["images"]} == {None}
    assert "AlexNet are not on this machine" in found["lpips_reason"]


def test_recovering_both_copies_of_a_private_image_is_recovering_one(
    judge: Judge, run: RunDirectory, truth: Tensor
) -> None:
    twice = torch.cat([truth[:1], truth[:1], truth[2:]])
    seal(run, 1, "client-7", twice, LABELS)

    found = judge(Reconstruction(inputs=torch.cat([twice[:2], 0.5 * truth[:2]]), labels=None))

    assert found["copies"] == {"private": 1, "guesses": 1, "public": 0}
    assert found["success_rate"] == 0.5
    assert (found["num_distinct"], found["distinct_recovered"]) == (3, 1)


def test_a_guess_that_is_a_public_image_is_called_one(judge: Judge, run: RunDirectory) -> None:
    public = SETTINGS["public_sample"]
    seal(run, 1, "client-7", public[:4], LABELS)

    found = judge(Reconstruction(inputs=public[:4], labels=None))

    assert found["copies"] == {"private": 0, "guesses": 0, "public": 4}
    assert found["pool_size"] == 5
    assert [image["identified"] for image in found["images"]] == [False] * 4


def test_a_guess_must_be_nearest_to_its_own_image_among_those_of_earlier_rounds(
    judge: Judge, run: RunDirectory, truth: Tensor
) -> None:
    vague = 0.6 * truth + 0.4 * truth.mean(dim=0)
    before = judge(Reconstruction(inputs=vague, labels=None))
    seal(run, 0, "client-2", vague[:1], LABELS[:1])
    seal(run, 0, "client-7", truth, LABELS)  # the same images again are no other images
    seal(run, 1, "client-3", vague[1:2], LABELS[:1])  # this round: sealed whenever it was

    found = judge(Reconstruction(inputs=vague, labels=None))

    assert [image["identified"] for image in before["images"]] == [True] * 4
    assert [image["identified"] for image in found["images"]] == [False, True, True, True]
    assert (before["pool_size"], found["pool_size"]) == (5, 6)


def test_a_false_certificate_is_counted(
    judge: Judge, truth: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    guess = Reconstruction(
        inputs=torch.cat([truth[:2], 1 - truth[2:3]]),
        labels=torch.tensor([3, 0, 3]),  # that of the second image is 1
        certified=torch.tensor([True, True, True]),
    )
    monkeypatch.setattr(RunDirectory, "read_reconstruction", lambda *_: guess)

    found = judge(guess)

    assert (found["certified"], found["certified_wrong"]) == (3, 2)
    assert [image["certified"] for image in found["images"] if image["guess"] is None] == [None]
    guess = replace(guess, certified=torch.tensor([True, False, False]))
    assert judge(guess)["certified_wrong"] == 0
