import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fedsim import files
from fedsim.files import Record, replace_json
from fedsim.records import RunDirectory
from fedsim.watch import watched
from fedsim.watch.cards import Wanted, cards
from fedsim.watch.watched import Watched, thinned
from fedsim.watch.workers import MOST_WORKERS
from tests.fedsim.conftest import MadeRun, Make
from tests.fedsim.told import table_run, text_run
from tests.fedsim.watch.synthetic import Made


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "run", rounds=10, clients=4)


def looked(run: Watched) -> Watched:
    while run.look():
        pass
    return run


def test_a_directory_that_is_not_there_waits(tmp_path: Path) -> None:
    found = looked(Watched(tmp_path / "later")).since(0)

    assert found["state"]["stage"] == "waiting"
    assert found["rounds"] == []
    assert found["headline"] == "Waiting for the run to begin."


def test_what_is_new_is_told_and_nothing_else(made: Made) -> None:
    made.begin()
    made.play(0, heard=False)
    made.play(1)
    run = looked(Watched(made.run.root))
    first = run.since(0)
    assert [row[0] for row in first["rounds"]] == [0, 1]
    assert first["state"]["waiting"] == 8  # two attacks on each of four updates

    made.play(2)
    made.attack(1, 3, 42.0)
    looked(run)
    news = run.since(first["version"])

    assert [row[0] for row in news["rounds"]] == [2]
    assert news["points"] == {"dlg": [[1, 42.0, 42.0, 42.0, 1, 1.0]]}
    assert news["state"]["done"] == 1
    assert news["best"] == {"3": 42.0}
    assert "run" not in news
    assert "graph" not in news
    assert run.since(0)["rounds"] == [*first["rounds"], *news["rounds"]]

    version = news["version"]
    looked(run)
    assert set(run.since(version)) == {"version", "full", "rounds", "points"}


def test_of_several_scores_of_one_attack_the_last_counts(made: Made) -> None:
    made.begin()
    made.play(1)
    made.attack(1, 0, 50.0)
    made.attack(1, 0, 20.0)

    found = looked(Watched(made.run.root)).since(0)

    row = found["attacks"]["dlg"]
    assert (row["done"], row["images"], row["recovered"], row["median"]) == (1, 1, 0, 20.0)
    assert found["points"]["dlg"] == [[1, 20.0, 20.0, 20.0, 1, 1.0]]


def test_scores_that_were_made_anew_replace_the_old_ones(made: Made) -> None:
    made.begin()
    made.play(1)
    made.play(2)
    made.attack(1, 0)
    made.attack(2, 0)
    run = looked(Watched(made.run.root))
    version = run.since(0)["version"]

    made.run.rewrite_log("scores", [made.score(1, 0, 77.0)])
    looked(run)
    news = run.since(version)

    assert news["full"]  # a page must forget the point that is gone
    assert news["points"] == {"dlg": [[1, 77.0, 77.0, 77.0, 1, 1.0]]}


def test_the_numbers_are_those_of_the_report(make_run: Make) -> None:
    run = make_run(MadeRun(failing=(2,)))
    summary = json.loads(run.summary.read_text())

    found = looked(Watched(run.root)).since(0)

    assert found["state"]["stage"] == "done"
    for row in summary["leakage"]:
        mine = found["attacks"][row["attack"]]
        assert mine["failed"] == row["failed"]
        if row["success_rate"] is None:
            assert mine["images"] == 0
            assert mine["labels"] == pytest.approx(row["label_accuracy"], rel=1e-3)
            continue
        assert (mine["images"], mine["recovered"]) == (row["num_images"], row["num_recovered"])
        assert mine["median"] == pytest.approx(row["psnr_db"]["median"], rel=1e-3)
        assert mine["best"] == pytest.approx(row["psnr_db"]["best"], rel=1e-3)
        assert mine["baseline"] == pytest.approx(row["baseline_psnr_db"], rel=1e-3)


def test_an_oracle_is_called_one(make_run: Make) -> None:
    run = make_run(MadeRun(grants='"labels"', attacks=("IG",)))

    found = looked(Watched(run.root)).since(0)

    assert dict(found["run"]["attacks"])["IG"] == "oracle"
    assert "an oracle" in found["headline"]


def test_a_summary_that_does_not_count_a_round_is_that_of_an_earlier_end(
    finished_run: RunDirectory,
) -> None:
    os.utime(finished_run.summary, (1_000_000, 1_000_000))  # times mean nothing: it may be a copy
    before = looked(Watched(finished_run.root)).since(0)["state"]
    finished_run.append_round({"round": 4, "accuracy": 0.5})

    state = looked(Watched(finished_run.root)).since(0)["state"]

    assert (before["stage"], before["live"]) == ("done", False)
    assert state["stage"] == "attacking"
    assert state["live"]


def test_a_long_log_that_is_not_read_to_its_end_says_nothing_against_the_summary(
    finished_run: RunDirectory,
) -> None:
    run = Watched(finished_run.root)
    run.scores_log.most = 6_000

    assert run.look()

    assert run.since(0)["state"]["stage"] == "done"


def test_attacks_that_begin_again_have_nothing_to_show_for_it(made: Made) -> None:
    made.begin()
    made.play(1)
    made.attack(1, 0)
    run = looked(Watched(made.run.root))
    version = run.since(0)["version"]

    made.run.forget_reconstructions()
    looked(run)
    news = run.since(version)

    assert news["attacks"] == {}
    assert news["best"] == {}
    assert news["state"]["done"] == 0
    assert "stamp" in news


def test_a_score_that_replaces_a_better_one_is_the_best_there_is(made: Made) -> None:
    made.begin()
    made.play(1)
    made.play(2)
    made.attack(1, 0, 50.0)
    made.attack(2, 0, 30.0)
    run = looked(Watched(made.run.root))
    assert run.since(0)["best"] == {"0": 50.0}

    made.attack(1, 0, 20.0)
    assert looked(run).since(0)["best"] == {"0": 30.0}

    made.run.append_score(made.score(2, 0, 10.0) | {"images": []})
    assert looked(run).since(0)["best"] == {"0": 20.0}


def test_what_came_while_nobody_looked_on_is_no_speed(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.begin()
    made.play(1)
    now = [1000.0]
    monkeypatch.setattr("fedsim.watch.watched.time.monotonic", lambda: now[0])
    run = looked(Watched(made.run.root))

    def per_minute(client: int, seconds: float) -> int | None:
        now[0] += seconds
        made.attack(1, client)
        found: int | None = looked(run).since(0)["state"]["per_minute"]
        return found

    assert per_minute(0, 0.5) == 1
    assert per_minute(1, 0.5) == 2
    assert per_minute(2, 3600.0) is None
    assert per_minute(3, 0.5) == 1


@pytest.mark.parametrize("label", ["['a', 'b']", "{ a = 1 }", "3", "1979-05-27"])
def test_a_label_that_is_no_text_is_left_out(made: Made, label: str) -> None:
    made.begin()
    more = f'[[attacks]]\nname = "dlg"\nlabel = {label}\njoin_rounds = inf\n'
    made.run.config.write_text(f"{made.text}\n{more}")

    found = looked(Watched(made.run.root)).since(0)

    assert [one for one, _ in found["run"]["attacks"]] == ["dlg", "label"]
    json.dumps(found, allow_nan=False)


def test_numbers_at_the_end_of_all_floats_harm_nothing(made: Made) -> None:
    made.begin()
    for number in (1, 2):
        made.play(number)
        made.run.append_round({"round": number, "loss": sys.float_info.max, "seconds": 1e308})
    most = {"seconds": sys.float_info.max, "label_accuracy": sys.float_info.max}
    for client in range(3):
        made.run.append_score(made.score(1, client, sys.float_info.max) | most)
    run = looked(Watched(made.run.root))

    json.dumps(run.since(0), allow_nan=False)
    json.dumps(cards(run, Wanted()), allow_nan=False)
    made.run.append_score(made.score(1, 0, 20.0))
    json.dumps(looked(run).since(0), allow_nan=False)


def test_a_job_is_seen_however_many_others_were_left_behind(made: Made) -> None:
    made.begin()
    made.play(1)
    job = {
        "attack": "dlg",
        "observations": [made.observation(1, 0)],
        "started": "2020-01-01T00:00:00+00:00",
        "time_budget_s": 60.0,
        "guesses": {},
    }
    for place in range(MOST_WORKERS):
        replace_json(made.run.root / "progress" / f"a{place}.json", job)
    replace_json(made.run.root / "progress" / "z.json", job | {"time_budget_s": 1e12})

    state = looked(Watched(made.run.root)).since(0)["state"]

    assert [one["worker"] for one in state["working"]] == ["z"]


def test_what_is_at_work_comes_first_among_the_newest(made: Made) -> None:
    made.begin()
    for number in range(1, 5):
        made.play(number)
    made.attack(4, 0)
    job = {
        "attack": "dlg",
        "observations": [made.observation(1, 2)],
        "started": "2020-01-01T00:00:00+00:00",
        "time_budget_s": 1e12,
        "guesses": {made.observation(1, 2): {"step": 3, "images": 1}},
    }
    replace_json(made.run.root / "progress" / "w.json", job)
    run = looked(Watched(made.run.root))

    found = cards(run, Wanted())
    rest = cards(run, Wanted(skip=found["next"]))
    best = cards(run, Wanted(order="best"))

    first, second = found["cards"][:2]
    assert (first["round"], first["victim"]) == (1, "client-2")
    assert (first["tiles"][0]["state"], first["tiles"][0]["worker"]) == ("running", "w")
    assert (second["round"], second["victim"]) == (4, "client-0")
    assert len({one["id"] for one in found["cards"] + rest["cards"]}) == 16
    assert (best["cards"][0]["round"], best["cards"][0]["victim"]) == (4, "client-0")

    made.attack(1, 2)
    assert cards(looked(run), Wanted())["cards"][0]["round"] == 4


def test_a_run_that_was_killed_is_told_as_quiet(made: Made) -> None:
    made.begin()
    made.play(1)
    for path in [made.run.root, *made.run.root.iterdir()]:
        os.utime(path, (1_000_000, 1_000_000))

    assert looked(Watched(made.run.root)).since(0)["state"]["quiet_s"] > 1000


@pytest.mark.parametrize(
    "record",
    [
        {"round": "<script>"},
        {"round": 10**400},
        {"round": -1},
        {
            "round": 1,
            "accuracy": "high",
            "loss": {},
            "clients": "all",
            "peer_accuracy": [None, "x"],
        },
        {"round": 1, "accuracy": True, "clients": [[1], -3, 2**70, "1"], "seconds": "soon"},
    ],
)
def test_rounds_that_make_no_sense_harm_nothing(made: Made, record: Record) -> None:
    made.begin()
    with (made.run.root / "rounds.jsonl").open("w") as log:
        log.write(json.dumps(record) + '\n{"round": 2, "accuracy": NaN, "loss": Infinity}\n')

    found = looked(Watched(made.run.root)).since(0)

    json.dumps(found, allow_nan=False)
    assert [2, None, None, None, None, None, None] in found["rounds"]


@pytest.mark.parametrize("key", ["observation", "attack", "round", "status", "images", "baselines"])
@pytest.mark.parametrize("value", [None, "../../etc/passwd", "<b>", [], {}, [[]], 1e999, -1])
def test_scores_that_make_no_sense_harm_nothing(made: Made, key: str, value: object) -> None:
    made.begin()
    made.play(1)
    made.attack(1, 1)
    with (made.run.root / "scores.jsonl").open("a") as log:
        log.write(json.dumps(made.score(1, 0, 40.0) | {key: value}) + "\n")

    run = looked(Watched(made.run.root))

    json.dumps(run.since(0), allow_nan=False)
    json.dumps(cards(run, Wanted()), allow_nan=False)
    assert run.since(0)["attacks"]["dlg"]["done"] >= 1


@pytest.mark.parametrize("file", ["config.toml", "threat.json", "topology.json", "summary.json"])
@pytest.mark.parametrize("content", ["", "[]", "{}", "null", "\0", '{"name": []}', "rounds = 'x'"])
def test_documents_that_make_no_sense_harm_nothing(made: Made, file: str, content: str) -> None:
    made.begin()
    made.play(1)
    (made.run.root / file).write_text(content)

    json.dumps(looked(Watched(made.run.root)).since(0), allow_nan=False)


def test_files_that_lead_elsewhere_or_hold_too_much_are_not_read(
    made: Made, tmp_path: Path
) -> None:
    made.begin()
    made.play(1)
    root = made.run.root
    outside = tmp_path / "outside"
    outside.mkdir()
    told = {"time": "now", "kind": "secret", "message": "of somebody else"}
    (outside / "events.jsonl").write_text(json.dumps(told) + "\n")
    (outside / "config.toml").write_text('description = "secret"\n')
    for file in ("events.jsonl", "config.toml"):
        (root / file).unlink(missing_ok=True)
        (root / file).symlink_to(outside / file)
    (root / "rounds.jsonl").unlink()
    os.mkfifo(root / "rounds.jsonl")

    seen = looked(Watched(root)).since(0)

    assert seen["events"]["total"] == 0
    assert seen["rounds"] == []
    assert "secret" not in json.dumps(seen)


def test_an_experiment_larger_than_any_is_not_read(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.begin()
    (made.run.root / "config.toml").write_text('description = "long"\n')
    monkeypatch.setattr(files, "LARGEST_DOCUMENT", 10)

    assert looked(Watched(made.run.root)).config == {}


def test_a_job_of_a_worker_that_was_killed_is_forgotten(made: Made) -> None:
    made.begin()
    made.play(1)
    job = {
        "attack": "dlg",
        "observations": [made.observation(1, 0)],
        "started": "2020-01-01T00:00:00+00:00",
        "time_budget_s": 60.0,
        "guesses": {},
    }
    replace_json(made.run.root / "progress" / "a.json", job)
    replace_json(made.run.root / "progress" / "b.json", job | {"time_budget_s": 1e12})
    run = looked(Watched(made.run.root))
    assert [one["worker"] for one in run.since(0)["state"]["working"]] == ["b"]
    assert run.since(0)["state"]["running"] == 1

    made.attack(1, 0)
    looked(run)

    assert run.since(0)["state"]["working"] == []


def test_a_run_with_a_server_is_a_star_with_the_adversary_in_its_middle(made: Made) -> None:
    made.begin()

    graph = looked(Watched(made.run.root)).since(0)["graph"]

    assert len(graph["nodes"]) == 4
    assert graph["own"] == [-1]
    assert graph["heard"] == [(-1, client) for client in range(4)]


def test_a_run_among_peers_is_its_topology(made_among_peers: RunDirectory) -> None:
    found = looked(Watched(made_among_peers.root)).since(0)

    graph = found["graph"]
    assert graph["name"] == "ring"
    assert graph["own"] == [0]
    assert sorted(graph["heard"]) == [(0, 1), (0, 8)]
    assert len(graph["heard"]) + len(graph["links"]) == 9
    assert found["run"]["peers"] == "d-psgd on ring"
    assert set(found["best"]) == {"1", "2", "4", "8"}


def test_curves_of_many_rounds_are_told_thinned(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watched, "MOST_POINTS", 8)
    made.begin()
    for number in range(31):
        made.play(number, heard=False)
    made.attack_all(range(31))

    found = looked(Watched(made.run.root)).since(0)

    assert [row[0] for row in found["rounds"]] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert [row[0] for row in found["points"]["dlg"]] == [0, 4, 8, 12, 16, 20, 24, 28, 30]
    assert thinned({}) == set()


def test_cards_come_newest_first_or_by_rank_a_page_at_a_time(made: Made) -> None:
    made.begin()
    for number in (1, 2, 3, 4):
        made.play(number)
        for client in range(4):
            made.attack(number, client, 10.0 * client + number)
    run = looked(Watched(made.run.root))

    newest = cards(run, Wanted())
    best = cards(run, Wanted(order="best"))
    rest = cards(run, Wanted(skip=newest["next"]))
    mine = cards(run, Wanted(victim=2, order="worst"))

    assert newest["total"] == 16
    assert [(one["round"], one["victim"]) for one in newest["cards"][:2]] == [
        (4, "client-0"),
        (4, "client-1"),
    ]
    assert len(newest["cards"]) + len(rest["cards"]) == 16
    assert rest["next"] is None
    tile = best["cards"][0]["tiles"][0]
    assert (tile["attack"], tile["value"], tile["steps"]) == (
        "dlg",
        34.0,
        [0, 10, 20, 30, 40, 50, 50],
    )
    assert [one["round"] for one in mine["cards"]] == [1, 2, 3, 4]
    assert [one["tiles"][1]["state"] for one in mine["cards"]] == ["waiting"] * 4


def test_of_a_batch_best_median_and_worst_are_shown(make_run: Make) -> None:
    run = looked(Watched(make_run(MadeRun(batch_size=5, attacks=("dlg",))).root))

    found = cards(run, Wanted(round=1, victim=0))["cards"]

    assert [one["rank"] for one in found] == ["best of 5", "median of 5", "worst of 5"]
    values = [one["tiles"][0]["value"] for one in found]
    assert values == sorted(values, reverse=True)


@pytest.mark.slow
def test_a_hundred_clients_over_two_hundred_rounds_slow_nothing_down(tmp_path: Path) -> None:
    made = Made(tmp_path / "large", rounds=200, clients=100)
    made.begin()
    for number in range(200):
        made.play(number, heard=number > 0)
    made.attack_all(range(1, 200))
    run = looked(Watched(made.run.root))

    before = time.process_time()
    for _ in range(10):
        run.look()
    idle = (time.process_time() - before) / 10
    whole = run.since(0)
    made.play(200)
    made.attack_all(range(200, 201))
    before = time.process_time()
    run.look()
    busy = time.process_time() - before

    assert whole["state"]["done"] == 199 * 100
    assert len(json.dumps(whole)) < 60_000  # 18,000 here
    assert len(json.dumps(run.since(whole["version"]))) < 5_000  # 1,200 here
    assert len(json.dumps(cards(run, Wanted()))) < 20_000  # 4,000 here
    assert idle < 0.02  # 0.0003 s here: nothing is read again
    assert busy < 0.5  # 0.07 s here


@pytest.mark.parametrize(
    ("make", "noun", "title"),
    [(text_run, "texts", "tokens at their place"), (table_run, "rows", "features right")],
)
def test_numbers_of_texts_and_rows_are_those_of_the_report(
    tmp_path: Path, make: Callable[[Path], RunDirectory], noun: str, title: str
) -> None:
    run = make(tmp_path)
    row = json.loads(run.summary.read_text())["leakage"][0]

    watched = looked(Watched(run.root))
    found = watched.since(0)

    mine = found["attacks"]["dlg"]
    assert (mine["images"], mine["recovered"]) == (row["num_images"], row["num_recovered"])
    assert mine["median"] == pytest.approx(row["accuracy"]["median"], rel=1e-3)
    assert mine["best"] == pytest.approx(row["accuracy"]["best"], rel=1e-3)
    assert mine["baseline"] == row["baseline_accuracy"]
    assert mine["threshold"] == row["success_accuracy"]
    assert found["run"]["scale"]["title"] == title
    assert found["run"]["scale"]["factor"] == 100
    assert found["headline"].replace("\u00a0", " ") == (
        f"The curious server has recovered 2 of 8 {noun}, to 90 % of {title} or better (dlg); "
        "guessing the data mean gives 25 %."
    )
    best = cards(watched, Wanted(order="best"))["cards"][0]
    assert best["tiles"][0]["value"] == 1.0
    assert best["tiles"][0]["recovered"] is True


def test_records_that_do_not_say_so_are_of_images(made: Made) -> None:
    made.begin()
    made.play(1)
    made.attack(1, 0)
    run = looked(Watched(made.run.root))

    assert "modality" not in made.score(1, 0, 40.0)
    assert run.since(0)["run"]["scale"]["title"] == "PSNR"
    assert "1 of 1 image so far, to 30\u00a0dB or better" in run.since(0)["headline"]
    tile = cards(run, Wanted())["cards"][0]["tiles"][0]
    assert (tile["value"], tile["rouge"], tile["guessed_class"]) == (42.0, [], "")


def test_what_a_run_is_about_is_told_by_its_scores_where_its_data_are_not(
    tmp_path: Path,
) -> None:
    run = text_run(tmp_path)
    run.data.unlink()

    found = looked(Watched(run.root)).since(0)

    assert found["run"]["scale"]["modality"] == "text"


@pytest.mark.parametrize("modality", ["sound", None, 3, [], {}])
def test_a_score_of_no_known_kind_is_left_out(made: Made, modality: object) -> None:
    made.begin()
    made.play(1)
    made.run.append_score(made.score(1, 0, 40.0) | {"modality": modality})

    found = looked(Watched(made.run.root)).since(0)

    assert found["attacks"] == {}
    assert found["state"]["left_out"] == 1
