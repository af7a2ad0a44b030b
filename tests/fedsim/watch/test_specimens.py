"""What is told of texts and rows: what is right in them, and what strangers wrote."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedsim.files import replace_json, replace_tensors
from fedsim.records import RunDirectory
from fedsim.truth import unseal
from fedsim.watch.specimens import MOST_FEATURES, MOST_LETTERS, MOST_TOKENS
from tests.fedsim.conftest import MadeRun, Make
from tests.fedsim.told import LENGTH, SENTENCES, table_run, text_run, tokens_of
from tests.fedsim.watch.asking import Asker
from tests.fedsim.watch.synthetic import hostile_table, hostile_text, job

NAME = "round-00001-client-0-to-server"
WORSE = "round-00002-client-0-to-server"
UNREADABLE = frozenset("\u202e\u202c\u200f\u061c\x00\x1b\n")


@pytest.fixture
def texts(tmp_path: Path) -> RunDirectory:
    return text_run(tmp_path)


@pytest.fixture
def rows(tmp_path: Path) -> RunDirectory:
    return table_run(tmp_path)


def told(run: RunDirectory, place: str) -> Any:
    answer = Asker(run.root).get(place)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return answer.json()


def status(run: RunDirectory, place: str) -> int:
    return Asker(run.root).get(place).status_code


def words(frame: list[list[Any]], mark: str | None = None) -> list[str]:
    return [word for word, said, _ in frame if mark is None or said == mark]


def reconstruction(run: RunDirectory, name: str = NAME) -> Path:
    return run.root / "reconstructions" / f"{name}--dlg.safetensors"


def show(run: RunDirectory, name: str, guess: Tensor) -> None:
    replace_tensors(run.root / "progress" / "w.safetensors", {name: guess})
    replace_json(run.root / "progress" / "w.json", job("dlg", name, 7, examples=len(guess)))


def test_a_private_text_is_told_as_one_reads_it(texts: RunDirectory) -> None:
    found = told(texts, f"/original/{NAME}/0.json")

    assert found == {"names": None, "frames": [found["frames"][0]], "more": [0]}
    assert words(found["frames"][0]) == SENTENCES[0].replace("##", "").split()
    apart = {word: one for word, _, one in found["frames"][0]}
    assert (apart["for"], apart["ed"], apart["."]) == (True, False, False)
    assert words(found["frames"][0], "hit") == []


def test_masked_words_of_a_private_text_are_filled_in(tmp_path: Path) -> None:
    run = text_run(tmp_path, head="masked")

    found = told(run, f"/original/{NAME}/0.json")

    assert words(found["frames"][0])[2] == "was"


def test_a_film_of_a_text_marks_what_is_at_its_place_and_what_is_elsewhere(
    texts: RunDirectory,
) -> None:
    frames = told(texts, f"/film/{WORSE}/dlg/1.json?place=1")["frames"]

    assert len(frames) == 4  # three looks, and the end
    start, half, *_, end = frames
    assert words(start, "hit") == []
    assert words(half, "hit") == ["she", "monday", ","]
    assert " ".join(words(end)) == "she on returns monday , for the early signs ."
    assert words(end, "near") == ["on", "returns"]
    assert " ".join(words(end, "hit")) == "she monday , for the early signs ."


def test_a_guess_is_compared_with_the_text_that_it_is_paired_with(texts: RunDirectory) -> None:
    own = told(texts, f"/film/{NAME}/dlg/0.json?place=0")["frames"][-1]
    other = told(texts, f"/film/{NAME}/dlg/0.json?place=1")["frames"][-1]

    assert words(own) == words(other)
    assert len(words(own, "hit")) == 11
    assert len(words(other, "hit")) < 3


def test_nothing_is_marked_where_the_truth_is_not_there(texts: RunDirectory) -> None:
    (texts.root / "truth" / "round-00001-client-0.safetensors").unlink()

    frames = told(texts, f"/film/{NAME}/dlg/0.json?place=0")["frames"]

    assert {mark for frame in frames for _, mark, _ in frame} == {""}
    assert status(texts, f"/original/{NAME}/0.json") == 404


def test_a_row_is_told_by_feature_with_what_its_score_calls_wrong(rows: RunDirectory) -> None:
    private = told(rows, f"/original/{WORSE}/0.json")
    guess = told(rows, f"/film/{WORSE}/dlg/0.json?place=0")

    assert private["names"][:3] == ["age", "workclass", "education"]
    assert [value for value, _, _ in private["frames"][0]][:2] == ["39", "state"]
    assert {mark for _, mark, _ in private["frames"][0]} == {""}
    assert guess["frames"][-1][0] == ["61", "miss", 0.42]
    assert guess["frames"][-1][1] == ["state", "hit", 0.93]


def test_a_row_on_its_way_is_compared_feature_by_feature(rows: RunDirectory) -> None:
    truth = private_of(rows, 1)
    nearly = truth[:1].clone()
    nearly[0, 0] += 0.04  # of its range: within the tolerance
    nearly[0, -1] += 0.06
    show(rows, NAME, nearly)

    found = told(rows, f"/so-far/w/{NAME}/0.json")["frames"]

    assert [mark for _, mark, _ in found[0]] == ["hit"] * 5 + ["miss"]


def private_of(run: RunDirectory, number: int) -> Tensor:
    sealed = unseal(run, number, "client-0")
    assert sealed is not None
    return sealed[0]


@pytest.mark.parametrize("kind", ["texts", "rows"])
def test_guesses_of_a_worker_are_paired_with_what_they_are_of(
    kind: str, request: pytest.FixtureRequest
) -> None:
    run: RunDirectory = request.getfixturevalue(kind)
    show(run, NAME, private_of(run, 1).flip(0))

    found = [told(run, f"/so-far/w/{NAME}/{place}.json")["frames"][0] for place in (0, 1)]

    for place, frame in enumerate(found):
        original = told(run, f"/original/{NAME}/{place}.json")["frames"][0]
        assert [one[0] for one in frame] == [one[0] for one in original]
        assert {one[1] for one in frame} == {"hit"}
    # of a job that has just ended there is nothing, and that is no error
    assert status(run, f"/so-far/w/{NAME}/2.json") == 204
    assert status(run, f"/so-far/other/{NAME}/0.json") == 204


# what strangers write


@pytest.mark.parametrize("make", [hostile_text, hostile_table])
def test_words_of_strangers_are_shortened_and_turn_nothing_around(
    tmp_path: Path, make: Any
) -> None:
    run = make(tmp_path)

    for place in (f"/original/{NAME}/0.json", f"/film/{NAME}/dlg/0.json?place=0"):
        found = told(run, place)
        shown = [one[0] for frame in found["frames"] for one in frame] + (found["names"] or [])
        assert not UNREADABLE & set("".join(shown))
        assert all(0 < len(one) <= MOST_LETTERS and one.strip() for one in shown)
    cards = Asker(run.root).get("/cards").json()["cards"]
    assert not UNREADABLE & set("".join(one["class"] for one in cards))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"null",
        b"\xff",
        b'{"modality": "text"}',
        b'{"name": "x", "modality": "sound", "class_names": []}',
        b'{"name": "x", "modality": "text", "class_names": [], "words": [1, {}]}',
        b'{"name": "x", "modality": "table", "class_names": [], "columns": [[]]}',
        b'{"a":' * 5000,
    ],
)
def test_data_that_make_no_sense_leave_numbers_in_place_of_words(
    texts: RunDirectory, content: bytes
) -> None:
    texts.data.write_bytes(content)

    found = told(texts, f"/original/{NAME}/0.json")

    assert words(found["frames"][0])[:2] == ["[1]", "[5]"]


def test_a_vocabulary_that_is_too_large_is_not_read(
    texts: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedsim.watch.data.MOST_WORDS", 5)

    assert words(told(texts, f"/original/{NAME}/0.json")["frames"][0])[0] == "[1]"


def test_tokens_beyond_the_vocabulary_are_told_by_number(texts: RunDirectory) -> None:
    strange = torch.full((2, LENGTH), 2**62)
    strange[0, :3] = torch.tensor([-5, 99, 5])
    replace_tensors(reconstruction(texts), {"inputs": strange})

    frame = told(texts, f"/film/{NAME}/dlg/0.json?place=0")["frames"][0]

    assert words(frame)[:4] == ["_", "[99]", "the", f"[{2**62}]"]


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(2, LENGTH),
        torch.zeros(2, 4097, dtype=torch.int64),
        torch.zeros(2, 0, dtype=torch.int64),
        torch.zeros(2, 3, LENGTH, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int64),
        torch.zeros((), dtype=torch.int64),
        torch.zeros(2, LENGTH, dtype=torch.bool),
        torch.zeros(0, LENGTH, dtype=torch.int64),
    ],
    ids=lambda one: f"{one.dtype}-{tuple(one.shape)}",
)
def test_tensors_that_are_no_texts_are_not_shown(texts: RunDirectory, tensor: Tensor) -> None:
    truth = texts.root / "truth" / "round-00001-client-0.safetensors"
    replace_tensors(truth, {"inputs": tensor, "labels": torch.zeros(2)})
    replace_tensors(reconstruction(texts), {"inputs": tensor, "snapshot/000": tensor})
    replace_tensors(texts.root / "progress" / "w.safetensors", {NAME: tensor})

    assert status(texts, f"/original/{NAME}/0.json") == 404
    assert status(texts, f"/film/{NAME}/dlg/0.json?place=0") == 404
    assert status(texts, f"/so-far/w/{NAME}/0.json") == 204


@pytest.mark.parametrize("shape", [(2, 3), (2, 12), (2, 3, 4), (2,), (), (2, 0)])
def test_tensors_that_are_no_rows_are_not_shown(rows: RunDirectory, shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape)
    truth = rows.root / "truth" / "round-00001-client-0.safetensors"
    replace_tensors(truth, {"inputs": tensor, "labels": torch.zeros(2)})
    replace_tensors(reconstruction(rows), {"inputs": tensor})
    replace_tensors(rows.root / "progress" / "w.safetensors", {NAME: tensor})

    assert status(rows, f"/original/{NAME}/0.json") == 404
    assert status(rows, f"/film/{NAME}/dlg/0.json?place=0") == 404
    assert status(rows, f"/so-far/w/{NAME}/0.json") == 204


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_numbers_that_are_none_are_told_as_such(rows: RunDirectory, value: float) -> None:
    guess = torch.full_like(private_of(rows, 1), value)
    replace_tensors(reconstruction(rows), {"inputs": guess, "snapshot/000": guess})
    show(rows, NAME, guess)

    for place in (f"/film/{NAME}/dlg/0.json?place=0", f"/so-far/w/{NAME}/0.json"):
        frames = told(rows, place)["frames"]
        assert all(0 < len(cell[0]) <= MOST_LETTERS for frame in frames for cell in frame)


def test_of_what_is_long_the_beginning_is_told_and_the_rest_counted(texts: RunDirectory) -> None:
    replace_tensors(reconstruction(texts), {"inputs": torch.full((2, 4096), 5)})

    found = told(texts, f"/film/{NAME}/dlg/0.json?place=0")

    assert len(found["frames"][0]) == MOST_TOKENS
    assert found["more"] == [4096 - MOST_TOKENS]


def test_of_many_features_the_first_are_told_and_the_rest_counted(rows: RunDirectory) -> None:
    record = json.loads(rows.data.read_text())
    record["columns"] = [{"name": f"f{place}"} for place in range(100)]
    replace_json(rows.data, record)
    truth = rows.root / "truth" / "round-00001-client-0.safetensors"
    replace_tensors(truth, {"inputs": torch.zeros(2, 100), "labels": torch.zeros(2)})

    found = told(rows, f"/original/{NAME}/0.json")

    assert len(found["frames"][0]) == len(found["names"]) == MOST_FEATURES
    assert found["more"] == [100 - MOST_FEATURES]


@pytest.mark.parametrize("key", ["texts", "rows", "modality", "tolerance", "success_accuracy"])
@pytest.mark.parametrize("value", [None, "x", -1, [], {}, [[]], [{"truth": 0, "wrong": ["a", {}]}]])
def test_scores_that_make_no_sense_harm_no_row(rows: RunDirectory, key: str, value: object) -> None:
    lines = rows.root / "scores.jsonl"
    records = [json.loads(line) | {key: value} for line in lines.read_text().splitlines()]
    lines.write_text("".join(json.dumps(one) + "\n" for one in records))
    asker = Asker(rows.root)

    json.dumps(asker.feed.run.since(0), allow_nan=False)
    assert asker.get("/cards").status_code == 200
    assert asker.get(f"/film/{NAME}/dlg/0.json?place=0").status_code in (200, 404)


def test_links_that_lead_out_of_the_run_are_not_followed(
    texts: RunDirectory, tmp_path: Path
) -> None:
    secret = tmp_path / "secret.safetensors"
    tokens = torch.stack([tokens_of(one) for one in SENTENCES])
    replace_tensors(secret, {"inputs": tokens, NAME: tokens, "labels": torch.zeros(2)})
    paths = [reconstruction(texts), texts.root / "truth" / "round-00001-client-0.safetensors"]
    for path in paths:
        path.unlink()
        path.symlink_to(secret)
    (texts.root / "progress").mkdir()
    (texts.root / "progress" / "w.safetensors").symlink_to(secret)

    assert status(texts, f"/original/{NAME}/0.json") == 404
    assert status(texts, f"/film/{NAME}/dlg/0.json?place=0") == 404
    assert status(texts, f"/so-far/w/{NAME}/0.json") == 204


@pytest.mark.parametrize("place", ["", "?place=-1", "?place=x", "?place=99999999999"])
def test_a_film_must_say_what_it_is_compared_with(texts: RunDirectory, place: str) -> None:
    assert status(texts, f"/film/{NAME}/dlg/0.json{place}") == 404


def test_pictures_are_of_images_and_words_of_what_is_none(
    texts: RunDirectory, make_run: Make
) -> None:
    images = make_run(MadeRun(attacks=("dlg",)))

    assert status(texts, f"/original/{NAME}/0.png") == 404
    assert status(texts, f"/film/{NAME}/dlg/0.png") == 404
    assert status(images, f"/original/{NAME}/0.json") == 404
    assert status(images, f"/film/{NAME}/dlg/0.json?place=0") == 404
