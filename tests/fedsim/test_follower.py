"""What is attacked when: as it is heard, by the round, or joined with earlier rounds."""

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from attacks.observation import Kind, Observation, Reconstruction
from fedsim.config import parse_experiment
from fedsim.errors import ConfigError
from fedsim.files import Record, read_json
from fedsim.pool import Job
from fedsim.records import RunDirectory
from fedsim.stages.attack import Follower

OWN_ATTACKS = '''
class Single:
    """Take one victim at a time."""

    needs = frozenset()

    def check(self, known):
        pass

    def __call__(self, seen, known, *, rng, budget=None):
        pass


class Many(Single):
    """Take several victims."""

    def many(self, seen, known, *, rngs, budget=None):
        pass
'''

TEXT = """
name = "x"
rounds = 9
[[attacks]]
name = "own_followed:{name}"
label = "a"
time_budget_s = 5
"""


class Pool:
    """Workers that answer when they are told to."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.answers: list[Record] = []
        self.waiting = 0

    def submit(self, job: Job) -> None:
        self.jobs.append(job)

    def poll(self) -> list[Record]:
        answers, self.answers = self.answers, []
        return answers

    def close(self) -> None:
        pass

    def take(self) -> list[tuple[str, ...]]:
        """Return the observations of the jobs so far, in short, and forget the jobs."""
        jobs, self.jobs = self.jobs, []
        assert {(job.attack, job.time_budget_s) for job in jobs} <= {("a", 5.0)}
        return [
            tuple(one.removesuffix("-to-server")[6:] for one in job.observations) for job in jobs
        ]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    """An empty run, and attacks of the user's own."""
    (tmp_path / "own_followed.py").write_text(OWN_ATTACKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield RunDirectory.create(tmp_path, "tiny")
    sys.modules.pop("own_followed", None)


def hear(run: RunDirectory, server_round: int, *clients: int) -> None:
    for client in clients:
        run.write_observation(
            Observation(
                round=server_round,
                sender=f"client-{client}",
                receiver="server",
                kind=Kind.GRADIENT,
                update={"x": torch.ones(1)},
            )
        )


def attacked(run: RunDirectory, *observations: str) -> None:
    for one in observations:
        record = read_json(run.root / "observations" / f"round-{one}-to-server.json")
        run.write_reconstruction(record, "a", Reconstruction(inputs=None, labels=None))


def follow(
    run: RunDirectory, name: str, more: str = "", told: Callable[[Record], None] = lambda _: None
) -> tuple[Follower, Pool]:
    pool = Pool()
    return Follower(parse_experiment(TEXT.format(name=name) + more), run, pool, told), pool


def test_each_observation_is_attacked_as_it_appears_and_only_once(run: RunDirectory) -> None:
    hear(run, 1, 0)
    attacked(run, "00001-client-0")
    follower, pool = follow(run, "Single")

    hear(run, 1, 1)
    follower.step()
    assert pool.take() == [("00001-client-1",)]
    hear(run, 2, 0, 1)
    follower.step()
    follower.step(trained=True)
    assert pool.take() == [("00002-client-0",), ("00002-client-1",)]


def test_victims_of_one_computation_wait_for_the_end_of_their_round(run: RunDirectory) -> None:
    follower, pool = follow(run, "Many")

    hear(run, 1, 0, 1)
    follower.step()
    assert pool.take() == []
    run.append_round({"round": 1})
    hear(run, 2, 1)
    follower.step()
    assert pool.take() == [("00001-client-0", "00001-client-1")]
    hear(run, 2, 0)
    follower.step(trained=True)
    assert pool.take() == [("00002-client-0", "00002-client-1")]


def test_a_resumed_run_computes_together_what_the_whole_run_would(run: RunDirectory) -> None:
    run.append_round({"round": 1})
    run.append_round({"round": 2})
    hear(run, 1, 0, 1)
    hear(run, 2, 0, 1)
    hear(run, 3, 0)  # killed in round 3, which is not over
    attacked(run, "00001-client-0", "00001-client-1", "00002-client-1")
    told: list[Record] = []
    follower, pool = follow(run, "Many", told=told.append)

    follower.step()
    assert pool.take() == [("00002-client-0", "00002-client-1")]
    attacked(run, "00002-client-0")
    pool.answers = [
        {"observation": f"round-00002-client-{client}-to-server", "attack": "a"}
        for client in (0, 1)
    ]
    follower.step()
    assert [one["observation"] for one in told] == ["round-00002-client-0-to-server"]

    hear(run, 3, 0, 1)
    run.append_round({"round": 3})
    follower.step()
    assert pool.take() == [("00003-client-0", "00003-client-1")]


@pytest.mark.parametrize("name", ["Single", "Many"])
def test_rounds_are_joined_once_there_are_enough_and_with_each_further_one(
    run: RunDirectory, name: str
) -> None:
    follower, pool = follow(run, name, "join_rounds = 3\n")
    found = []
    for number, clients in {1: (0, 1), 2: (0,), 4: (0, 1), 5: (0, 1), 6: (11,)}.items():
        hear(run, number, *clients)
        follower.step()
        found.append(pool.take())

    assert found == [[], [], [("00004-client-0",)], [("00005-client-0",), ("00005-client-1",)], []]

    again, pool = follow(run, name, "join_rounds = 3\n")  # all at once, as `fedsim attack` sees it
    again.step(trained=True)
    assert sorted(pool.take()) == sorted(itertools.chain(*found))


def test_an_attack_that_was_lost_is_recorded_as_failed_and_as_an_event(run: RunDirectory) -> None:
    hear(run, 1, 0)
    told: list[Record] = []
    follower, pool = follow(run, "Single", told=told.append)

    follower.step()
    pool.answers = pool.jobs[0].failed("the attack worker died")
    follower.step()

    assert [(one["status"], one["reason"]) for one in told] == [
        ("failed", "the attack worker died")
    ]
    [event] = run.events()
    assert event["kind"] == "attack-lost"
    assert event["message"] == "a on round-00001-client-0-to-server: the attack worker died"


def test_more_rounds_than_are_heard_cannot_be_joined() -> None:
    text = TEXT.format(name="Single") + "join_rounds = 3\n[adversary]\nrounds = [1, 4]\n"
    with pytest.raises(ConfigError, match=r"attacks\.a\.join_rounds must be at most 2, the rounds"):
        parse_experiment(text)
    with pytest.raises(ConfigError, match="must be at most 9"):
        parse_experiment(TEXT.format(name="Single") + "join_rounds = 10")
