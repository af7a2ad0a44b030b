"""The addresses of the page: what they answer, and what they refuse."""

import asyncio
import io
import json
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from PIL import Image

from fedsim.files import replace_json, replace_tensors
from fedsim.records import RunDirectory
from fedsim.watch.app import SCRIPTS, build_app
from fedsim.watch.feed import Feed, Position, run_in
from fedsim.watch.guard import known
from fedsim.watch.pictures import Pictures
from fedsim.watch.tensors import MOST_IN_BATCHES, MOST_PRIVATE, Missing, RunTensors
from tests.fedsim.conftest import MadeRun, Make
from tests.fedsim.watch.asking import Asker
from tests.fedsim.watch.synthetic import Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    made = Made(tmp_path / "runs" / "run", rounds=10, clients=4)
    made.begin()
    made.play(1)
    made.attack(1, 0)
    return made


@pytest.fixture
def asker(made: Made) -> Asker:
    return Asker(made.run.root)


def opened(answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


def test_the_page_and_its_parts_are_there_and_load_nothing_from_elsewhere(asker: Asker) -> None:
    page = asker.get("/")

    assert page.status_code == 200
    for place in ("/watch.css", *(f"/{name}.js" for name in SCRIPTS)):
        answer = asker.get(place)
        assert answer.status_code == 200
        assert "//" not in answer.text.replace("http://www.w3.org/2000/svg", "").replace(
            "// ", ""
        ).replace("/*", "")
    assert "http" not in page.text
    assert "style=" not in page.text
    assert asker.get("/server.js").status_code == 404


def test_no_script_makes_markup_of_text() -> None:
    folder = Path(__file__).resolve().parents[3] / "fedsim" / "watch" / "static"
    scripts = "".join(path.read_text() for path in folder.glob("*.js"))

    for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert word not in scripts


@pytest.mark.parametrize("place", ["/", "/watch.css", "/cards", "/nothing", "/health"])
def test_every_answer_has_the_strict_headers(asker: Asker, place: str) -> None:
    headers = asker.get(place).headers

    policy = headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert headers["cache-control"] == "no-store"


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8321", 200),
        ("localhost:8321", 200),
        ("LOCALHOST", 200),
        ("[::1]:8321", 200),
        ("192.168.1.7:80", 200),  # an address cannot be made to lead elsewhere
        ("page", 200),  # it was allowed
        ("evil.example:8321", 421),
        ("127.0.0.1.evil.example", 421),
        ("localhost.evil.example:8321", 421),
        ("evil.example@127.0.0.1", 421),
        ("127.0.0.1:x", 421),
        ("", 421),
    ],
)
def test_only_known_names_are_answered(made: Made, host: str, status: int) -> None:
    asker = Asker(made.run.root, names=("Page",))

    assert asker.get("/cards", host=host).status_code == status


def test_a_host_header_is_judged_by_its_whole_name() -> None:
    assert known("[fe80::1]", ())
    assert not known("[::1", ("localhost",)) or known("::1", ())
    assert not known("a b", ("a",))


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"])
def test_the_page_is_only_read(asker: Asker, method: str) -> None:
    assert asker.get("/cards", method=method).status_code == 405


def test_other_pages_are_refused_what_only_this_one_asks_for(asker: Asker) -> None:
    other = {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}

    assert asker.get("/cards", **other).status_code == 403
    assert asker.get("/cards", **(other | {"sec-fetch-site": "same-origin"})).status_code == 200
    assert asker.get("/", **(other | {"sec-fetch-mode": "navigate"})).status_code == 200


# pictures


def test_pictures_are_those_of_the_run(made: Made, asker: Asker) -> None:
    name = made.observation(1, 0)

    original = opened(asker.get(f"/original/{name}/0.png"))
    film = opened(asker.get(f"/film/{name}/dlg/0.png"))

    assert original.size == (8, 8)
    assert film.size == (7 * 8, 8)  # six looks, and the end
    assert film.crop((48, 0, 56, 8)).tobytes() == original.tobytes()
    assert film.crop((0, 0, 8, 8)).tobytes() != original.tobytes()


def test_the_guess_of_a_worker_is_paired_with_the_image_that_it_is_of(
    make_run: Make,
) -> None:
    run = make_run(MadeRun(batch_size=3, attacks=("dlg",)))
    name = "round-00001-client-0-to-server"
    truth = torch.stack([torch.full((1, 8, 8), value) for value in (0.0, 0.5, 1.0)])
    path = run.root / "truth" / "round-00001-client-0.safetensors"
    replace_tensors(path, {"inputs": truth, "labels": torch.zeros(3, dtype=torch.int64)})
    replace_tensors(run.root / "progress" / "w.safetensors", {name: truth.flip(0) * 0.9})
    asker = Asker(run.root)

    found = [opened(asker.get(f"/so-far/w/{name}/{image}.png")) for image in range(3)]

    assert [one.getpixel((0, 0)) for one in found] == [0, 115, 230]
    # of a job that has just ended there is nothing, and that is no error
    assert asker.get(f"/so-far/w/{name}/3.png").status_code == 204
    assert asker.get(f"/so-far/other/{name}/0.png").status_code == 204


UP = ["..", "%2e%2e", "..%2f..", "%2e%2e%2f%2e%2e", "..%5c..", "....//", "%00", "."]
PLACES = [
    "/original/{}/0.png",
    "/film/{}/dlg/0.png",
    "/film/round-00001-client-0-to-server/{}/0.png",
    "/so-far/{}/round-00001-client-0-to-server/0.png",
    "/so-far/w/{}/0.png",
    "/{}.js",
    "/{}",
]
ENDS = ["/truth/round-00001-client-0", "%2ftruth%2fround-00001-client-0", "%2fconfig.toml", ""]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("up", UP)
def test_no_name_leads_out_of_its_folder(asker: Asker, place: str, up: str) -> None:
    for end in ENDS:
        status, body = asker.get_raw(place.format(up + end))

        assert status == 404, place.format(up + end)
        assert b"PNG" not in body


@pytest.mark.parametrize("number", ["-1", "1", "999999999999999999999", "x", "0x0", "%30%00"])
def test_an_image_that_is_not_there_is_not_found(asker: Asker, made: Made, number: str) -> None:
    name = made.observation(1, 0)

    assert asker.get(f"/original/{name}/{number}.png").status_code == 404
    assert asker.get(f"/film/{name}/dlg/{number}.png").status_code == 404


def test_links_that_lead_out_of_the_run_are_not_followed(made: Made, tmp_path: Path) -> None:
    secret = tmp_path / "secret.safetensors"
    replace_tensors(secret, {"inputs": torch.rand(1, 1, 8, 8), "labels": torch.tensor([1])})
    name = made.observation(1, 1)
    made.run.append_score(made.score(1, 1, 40.0))
    (made.run.root / "reconstructions" / f"{name}--dlg.safetensors").symlink_to(secret)
    (made.run.root / "truth" / "round-00001-client-1.safetensors").symlink_to(secret)
    (made.run.root / "progress").mkdir()
    (made.run.root / "progress" / "w.safetensors").symlink_to(secret)
    asker = Asker(made.run.root)

    assert asker.get(f"/film/{name}/dlg/0.png").status_code == 404
    assert asker.get(f"/original/{name}/0.png").status_code == 404
    assert asker.get(f"/so-far/w/{name}/0.png").status_code == 204


@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"\xff" * 8 + b"{}", b"PK\x03\x04"])
def test_files_that_are_no_tensors_are_not_shown(made: Made, content: bytes) -> None:
    name = made.observation(1, 0)
    for path in (
        made.run.root / "reconstructions" / f"{name}--dlg.safetensors",
        made.run.root / "truth" / "round-00001-client-0.safetensors",
    ):
        path.write_bytes(content)
    asker = Asker(made.run.root)

    assert asker.get(f"/film/{name}/dlg/0.png").status_code == 404
    assert asker.get(f"/original/{name}/0.png").status_code == 404


@pytest.mark.parametrize(
    "shape", [(0, 1, 8, 8), (1, 1, 0, 8), (1, 64), (1, 1, 2000, 1), (1, 0, 8, 8), (1, 5, 8, 8), ()]
)
def test_tensors_that_are_no_images_are_not_shown(made: Made, shape: tuple[int, ...]) -> None:
    name = made.observation(1, 0)
    zeros = torch.zeros(shape)
    path = made.run.root / "truth" / "round-00001-client-0.safetensors"
    replace_tensors(path, {"inputs": zeros, "labels": torch.zeros(1)})
    replace_tensors(
        made.run.root / "reconstructions" / f"{name}--dlg.safetensors",
        {"inputs": zeros, "snapshot/000": zeros},
    )
    replace_tensors(made.run.root / "progress" / "w.safetensors", {name: zeros})
    asker = Asker(made.run.root)

    assert asker.get(f"/original/{name}/0.png").status_code == 404
    assert asker.get(f"/film/{name}/dlg/0.png").status_code == 404
    assert asker.get(f"/so-far/w/{name}/0.png").status_code == 204


def test_looks_of_different_sizes_are_no_film(made: Made) -> None:
    name = made.observation(1, 0)
    replace_tensors(
        made.run.root / "reconstructions" / f"{name}--dlg.safetensors",
        {"inputs": torch.zeros(1, 1, 8, 8), "snapshot/000": torch.zeros(1, 3, 9, 8)},
    )

    assert Asker(made.run.root).get(f"/film/{name}/dlg/0.png").status_code == 404


def test_a_name_that_is_too_long_for_a_file_is_not_found(made: Made) -> None:
    name = f"round-00001-{'x' * 120}-to-server"
    (made.run.root / "observations" / f"{name}.json").write_text("{}")
    score = made.score(1, 0, 40.0) | {"observation": name, "attack": "y" * 120}
    made.run.append_score(score)

    found = Asker(made.run.root).get(f"/film/{name}/{'y' * 120}/0.png")

    assert found.status_code == 404


def test_a_file_that_promises_more_than_it_holds_is_not_opened(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = made.observation(1, 0)
    header = {"inputs": {"dtype": "F32", "shape": [2, 1, 8, 8], "data_offsets": [0, 256]}}
    text = json.dumps(header).encode()
    content = len(text).to_bytes(8, "little") + text + bytes(256)
    for path in (
        made.run.root / "reconstructions" / f"{name}--dlg.safetensors",
        made.run.root / "progress" / "w.safetensors",
    ):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    monkeypatch.setattr("fedsim.watch.tensors.safe_open", None)
    asker = Asker(made.run.root)

    assert asker.get(f"/film/{name}/dlg/0.png").status_code == 404
    assert asker.get(f"/so-far/w/{name}/0.png").status_code == 204


def promise(path: Path, shapes: dict[str, list[int]]) -> None:
    """Write a file of F64 tensors that takes no room, whatever it holds."""
    header, end = {}, 0
    for name, shape in shapes.items():
        start, end = end, end + 8 * prod(shape)
        header[name] = {"dtype": "F64", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)


def test_a_film_that_holds_too_much_is_not_read(tmp_path: Path) -> None:
    looks = {f"snapshot/{number:04d}": [1, 4, 1024, 1024] for number in range(4)}
    promise(tmp_path / "reconstructions/a--dlg.safetensors", looks | {"inputs": [1, 4, 1024, 1024]})

    with pytest.raises(Missing):
        Pictures(RunTensors(tmp_path)).film("a", "dlg", 0)


def test_a_private_batch_that_holds_too_much_is_not_read(tmp_path: Path) -> None:
    many = MOST_IN_BATCHES // 3072 + 1
    path = tmp_path / "truth/round-00001-client-0.safetensors"
    promise(path, {"inputs": [many, 3, 32, 32], "labels": [many]})

    with pytest.raises(Missing):
        Pictures(RunTensors(tmp_path)).original(1, "client-0", 0)


def test_a_guess_so_far_is_not_paired_with_more_than_a_batch(tmp_path: Path) -> None:
    guesses = torch.rand(2, 1, 2, 2)
    replace_tensors(tmp_path / "progress" / "w.safetensors", {"a": guesses})
    for server_round, many in ((1, MOST_PRIVATE), (2, MOST_PRIVATE + 1)):
        inputs = torch.cat([guesses, torch.rand(many - 2, 1, 2, 2)])
        path = tmp_path / "truth" / f"round-0000{server_round}-client-0.safetensors"
        replace_tensors(path, {"inputs": inputs, "labels": torch.zeros(many)})
    pictures = Pictures(RunTensors(tmp_path))

    assert pictures.so_far("w", "a", 1, 1, "client-0")
    with pytest.raises(Missing):
        pictures.so_far("w", "a", 1, 2, "client-0")


@pytest.mark.parametrize(
    "query", ["order=random", "victim=-1", "victim=x", "round=1e3", "skip=-1", "skip=" + "9" * 30]
)
def test_questions_that_make_no_sense_are_not_answered(asker: Asker, query: str) -> None:
    answer = asker.get(f"/cards?{query}")

    assert answer.status_code == 404
    assert answer.headers["content-type"].startswith("text/plain")


def test_hostile_names_stay_text_in_what_is_told(make_run: Make) -> None:
    run = make_run(MadeRun())
    run.append_event("<img src=x>", "client '<script>alert(1)</script>' said /home/me/x\u202e\n")
    asker = Asker(run.root)

    told = asker.feed.run.since(0)

    assert told["events"]["newest"][0]["message"] == "client '<script>alert(1)</script>' said …/x  "
    answer = asker.get("/cards")
    assert answer.headers["content-type"] == "application/json"


# events


@contextmanager
def following(feed: Feed) -> Iterator[Any]:
    """Follow a feed in a thread with a loop of its own; yields what runs a coroutine in it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    follow = asyncio.run_coroutine_threadsafe(feed.follow(), loop)
    try:
        yield lambda one: asyncio.run_coroutine_threadsafe(one, loop).result(40)
    finally:
        asyncio.run_coroutine_threadsafe(feed.close(), loop).result(40)
        follow.result(40)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def read(event: str) -> Any:
    lines = dict(line.split(": ", 1) for line in event.strip().splitlines())
    return lines.get("id"), json.loads(lines["data"])


def test_a_stream_tells_all_there_is_and_then_what_is_new(made: Made) -> None:
    _, feed = build_app(made.run.root)
    with following(feed) as wait:
        stream = feed.stream(Position())
        assert wait(anext(stream)) == "retry: 1000\n\n"
        first, all_there_is = read(wait(anext(stream)))
        made.play(2)
        second, news = read(wait(anext(stream)))
        wait(stream.aclose())

        again = feed.stream(Position.parse(second))  # the page was away for a moment
        wait(anext(again))
        made.play(3)
        _, more = read(wait(anext(again)))
        wait(again.aclose())

    assert all_there_is["full"]
    assert not news["full"]
    assert [row[0] for row in news["rounds"]] == [2]
    assert not more["full"]
    assert [row[0] for row in more["rounds"]] == [3]
    assert first.split(":")[0] == second.split(":")[0] == all_there_is["reading"]
    assert feed.listeners == 0


def test_a_page_that_knew_another_server_is_told_everything(made: Made) -> None:
    _, feed = build_app(made.run.root)
    feed.look()

    for odd in (f"{feed.reading}:0", "other:99", "nonsense", f"{feed.reading}:-4", ":", "a:b:c"):
        position, message = feed.message(Position.parse(odd))
        assert read(message)[1]["full"], odd
        assert feed.message(position) == (position, "")


def test_nobody_looks_at_the_run_when_no_page_is_open(made: Made) -> None:
    _, feed = build_app(made.run.root)
    with following(feed):
        time.sleep(1.2)
        before = feed.run.version
        time.sleep(1.2)

        assert feed.run.version == before


def test_a_folder_of_runs_shows_the_newest(tmp_path: Path) -> None:
    assert run_in(tmp_path / "runs") == tmp_path / "runs"
    first = Made(tmp_path / "runs" / "a-0001", rounds=2, clients=2)
    first.begin()
    _, feed = build_app(tmp_path / "runs")
    feed.look()
    reading = feed.reading
    assert feed.run.root.name == "a-0001"

    second = Made(tmp_path / "runs" / "a-0002", rounds=2, clients=2)
    assert run_in(tmp_path / "runs").name == "a-0001"  # the other has not begun
    second.begin()
    feed.chosen_at = float("-inf")
    feed.look()

    assert feed.run.root.name == "a-0002"
    assert feed.reading != reading


def test_the_run_directory_is_left_as_it_was(finished_run: RunDirectory) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished_run.root.rglob("*")}
    replace_json(finished_run.root / "extra.json", {})
    before[finished_run.root / "extra.json"] = (finished_run.root / "extra.json").stat().st_mtime_ns
    asker = Asker(finished_run.root)

    for card in asker.get("/cards").json()["cards"]:
        asker.get(f"/original/{card['id']}/{card['image']}.png")
        for tile in card["tiles"]:
            if tile.get("guess") is not None:
                opened(asker.get(f"/film/{card['id']}/{tile['attack']}/{tile['guess']}.png"))

    assert {path: path.stat().st_mtime_ns for path in finished_run.root.rglob("*")} == before
