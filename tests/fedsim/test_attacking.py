"""The process that runs attacks: what it writes, and what it cannot read."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from attacks.observation import Kind, Observation
from attacks.threats import CURIOUS_SERVER
from fedsim.attacking import AttackWorker, serve
from fedsim.config import parse_experiment
from fedsim.deployment.containers import hand_over
from fedsim.errors import ConfigError
from fedsim.files import replace_bytes
from fedsim.knowledge import knowledge_record, recipe_of, write_knowledge
from fedsim.records import RunDirectory
from fedsim.stages.score import score
from fedsim.truth import seal

OWN_ATTACKS = '''
import torch
from attacks.observation import AttackFailed, Reconstruction


class Noise:
    """Guess noise."""

    needs = frozenset()

    def __init__(self, finished: bool = True) -> None:
        self.finished = finished

    def __call__(self, seen, known, *, rng, budget=None):
        inputs = torch.rand(known.batch_size, *known.input_shape, generator=rng)
        return Reconstruction(inputs=inputs, labels=known.labels, finished=self.finished)


class Many(Noise):
    """Guess noise for several victims at once; each of them may fail in its own way."""

    def __init__(self, spoils: str = "") -> None:
        super().__init__()
        self.spoils = spoils

    def check(self, known):
        pass

    def many(self, seen, known, *, rngs, budget=None):
        assert len(seen) == len(known) == len(rngs) == 2
        assert budget.seconds == 120.0
        if self.spoils == "all":
            raise AttackFailed("all of them")
        if self.spoils == "crash":
            raise ValueError("boom")
        guesses = [self(one, k, rng=rng) for one, k, rng in zip(seen, known, rngs)]
        if self.spoils == "first":
            guesses[0] = AttackFailed("this one")
        if self.spoils == "second":
            guesses[1] = None
        return guesses[1:] if self.spoils == "number" else guesses


class GivesUp:
    """Fail as attacks should."""

    needs = frozenset()

    def __call__(self, seen, known, *, rng, budget=None):
        raise AttackFailed("no bias")


class Crashes:
    """Fail as attacks should not."""

    needs = frozenset()

    def __call__(self, seen, known, *, rng, budget=None):
        return 1 / 0


class Rounds:
    """Say which rounds it was given."""

    needs = frozenset()

    def __call__(self, seen, known, *, rng, budget=None):
        assert isinstance(seen, list)
        assert {one.sender for one in seen} == {"client-0"}
        labels = torch.tensor([one.round for one in seen])
        notes = {"batch size": known.batch_size}
        return Reconstruction(inputs=None, labels=labels, notes=notes)


class Odd:
    """Return labels that are none."""

    needs = frozenset()

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, seen, known, *, rng, budget=None):
        labels = {
            "negative": torch.tensor([0, -1]),
            "float": torch.tensor([0.0, 1.0]),
            "matrix": torch.zeros(2, 10, dtype=torch.int64),
            "few": torch.tensor([0]),
            "large": torch.tensor([0, 2**60]),
        }
        return Reconstruction(inputs=torch.rand(2, 1, 8, 8), labels=labels[self.kind])


class Forgets:
    """Return nothing."""

    needs = frozenset()

    def __call__(self, seen, known, *, rng, budget=None):
        pass
'''

EXPERIMENT = """
name = "tiny"
[model]
name = "mlp"
options = { hidden = [4] }
[[attacks]]
name = "own:Noise"
label = "noise"
[[attacks]]
name = "own:Noise"
label = "slow"
options = { finished = false }
[[attacks]]
name = "own:Many"
label = "many"
[[attacks]]
name = "own:GivesUp"
[[attacks]]
name = "own:Crashes"
[[attacks]]
name = "own:Forgets"
"""

FIRST, SECOND = (f"round-00001-client-{client}-to-server" for client in (0, 1))


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RunDirectory]:
    """A run with two observations, and attacks of the user's own."""
    (tmp_path / "own.py").write_text(OWN_ATTACKS)
    monkeypatch.syspath_prepend(str(tmp_path))
    experiment = parse_experiment(EXPERIMENT)
    run = RunDirectory.create(tmp_path / "runs", "tiny")
    replace_bytes(run.config, experiment.to_toml().encode())
    told = knowledge_record(
        experiment,
        CURIOUS_SERVER,
        input_shape=(1, 8, 8),
        num_classes=10,
        recipe=recipe_of(experiment, 1),
    )
    write_knowledge(run, told, None)
    for client in (0, 1):
        run.write_observation(
            Observation(
                round=1,
                sender=f"client-{client}",
                receiver="server",
                kind=Kind.GRADIENT,
                update={"x": torch.ones(2)},
                num_examples=2 + client,
            )
        )
        seal(run, 1, f"client-{client}", torch.rand(2, 1, 8, 8), torch.tensor([1, 2]))
    yield run
    sys.modules.pop("own", None)


def test_a_guess_is_written_with_its_status_and_the_message_sets_the_batch(
    run: RunDirectory,
) -> None:
    worker = AttackWorker(str(run.root))

    answers = worker.attack([FIRST], "noise") + worker.attack([SECOND], "slow")

    assert [(one["status"], one["reason"]) for one in answers] == [
        ("done", None),
        ("unfinished", None),
    ]
    shapes = [guess.inputs.shape for _, guess in run.reconstructions() if guess.inputs is not None]
    assert shapes == [(2, 1, 8, 8), (3, 1, 8, 8)]


def test_every_attack_on_every_observation_has_random_numbers_of_its_own(
    run: RunDirectory,
) -> None:
    def guesses(jobs: list[tuple[str, str]]) -> dict[str, str]:
        worker = AttackWorker(str(run.root))
        for observation, title in jobs:
            worker.attack([observation], title)
        return {
            f"{one['observation']}--{one['attack']}": one["sha256"]
            for one in run.reconstruction_records()
        }

    forth = guesses([(FIRST, "noise"), (SECOND, "noise"), (FIRST, "slow")])
    back = guesses([(FIRST, "slow"), (SECOND, "noise"), (FIRST, "noise")])

    assert forth == back
    assert len(set(forth.values())) == 3


def test_an_attack_that_gives_up_is_recorded_with_its_reason(run: RunDirectory) -> None:
    [answer] = AttackWorker(str(run.root)).attack([FIRST], "own.GivesUp")

    assert (answer["status"], answer["reason"]) == ("failed", "no bias")
    assert run.reconstruction_records()[0]["reason"] == "no bias"
    assert run.events() == []


@pytest.mark.parametrize(
    ("attack", "reason"),
    [
        ("own.Crashes", "the attack crashed: ZeroDivisionError: division by zero"),
        (
            "own.Forgets",
            "the attack crashed: TypeError: it must return a Reconstruction, got NoneType",
        ),
    ],
)
def test_an_attack_that_crashes_is_recorded_as_failed_and_as_an_event(
    run: RunDirectory, attack: str, reason: str
) -> None:
    worker = AttackWorker(str(run.root))

    [answer] = worker.attack([FIRST], attack)
    [after] = worker.attack([SECOND], "noise")

    assert (answer["status"], answer["reason"]) == ("failed", reason)
    [event] = run.events()
    assert event["kind"] == "attack-crashed"
    assert event["message"] == f"{attack} on {FIRST}: {reason}"
    assert any("test" in frame or " in " in frame for frame in event["trail"])
    assert after["status"] == "done"


@pytest.mark.parametrize("kind", ["negative", "float", "matrix", "few", "large"])
def test_labels_of_a_wrong_form_end_the_attack_and_not_the_run(
    run: RunDirectory, kind: str
) -> None:
    odd = f'\n[[attacks]]\nname = "own:Odd"\nlabel = "odd"\noptions = {{ kind = "{kind}" }}\n'
    replace_bytes(run.config, (run.config.read_text() + odd).encode())
    worker = AttackWorker(str(run.root))

    [answer] = worker.attack([FIRST], "odd")
    [after] = worker.attack([FIRST], "noise")
    scores = score(
        run,
        public_sample=torch.rand(3, 1, 8, 8),
        seed=0,
        threat="curious-server",
        defense="none",
        success_threshold_db=30.0,
    )

    assert (answer["status"], after["status"]) == ("failed", "done")
    assert "the attack crashed: TypeError: labels must be" in answer["reason"]
    assert [event["kind"] for event in run.events()] == ["attack-crashed"]
    assert {one["attack"]: one["status"] for one in scores} == {"odd": "failed", "noise": "done"}


def test_victims_of_one_computation_have_the_random_numbers_they_have_alone(
    run: RunDirectory,
) -> None:
    def guesses() -> dict[str, str]:
        return {one["observation"]: one["sha256"] for one in run.reconstruction_records()}

    worker = AttackWorker(str(run.root))
    answers = worker.attack([FIRST, SECOND], "many")
    together, records = guesses(), run.reconstruction_records()
    for observation in (SECOND, FIRST):
        worker.attack([observation], "many")

    assert [(one["observation"], one["status"]) for one in answers] == [
        (FIRST, "done"),
        (SECOND, "done"),
    ]
    assert guesses() == together
    assert len({one["seconds"] for one in records}) == 1  # each its share
    assert records[0]["seconds"] > 0


CRASH = "the attack crashed: "
COUNT = CRASH + "TypeError: `many` must return one guess per victim, 2 of them, got 1"


@pytest.mark.parametrize(
    ("spoils", "first", "second"),
    [
        ("first", "this one", None),
        ("second", None, CRASH + "TypeError: it must return a Reconstruction, got NoneType"),
        ("all", "all of them", "all of them"),
        ("crash", CRASH + "ValueError: boom", CRASH + "ValueError: boom"),
        ("number", COUNT, COUNT),
    ],
)
def test_of_several_victims_each_fails_for_itself_unless_all_do(
    run: RunDirectory, spoils: str, first: str | None, second: str | None
) -> None:
    text = run.config.read_text()
    replace_bytes(
        run.config,
        (
            text + f'\n[[attacks]]\nname = "own:Many"\nlabel = "spoiled"\n'
            f'options = {{ spoils = "{spoils}" }}\n'
        ).encode(),
    )

    answers = AttackWorker(str(run.root)).attack([FIRST, SECOND], "spoiled")

    assert [one["reason"] for one in answers] == [first, second]
    assert [one["status"] for one in run.reconstruction_records()] == [
        "done" if reason is None else "failed" for reason in (first, second)
    ]


@pytest.mark.parametrize(
    ("heard", "rounds"), [((1, 2, 3, 5), [3, 5]), ((3, 5), [3, 5])], ids=["more", "just enough"]
)
def test_joined_rounds_are_the_last_of_this_victim_oldest_first(
    run: RunDirectory, heard: tuple[int, ...], rounds: list[int]
) -> None:
    text = run.config.read_text()
    joined = '\n[[attacks]]\nname = "own:Rounds"\nlabel = "joined"\njoin_rounds = 2\n'
    replace_bytes(run.config, (text + joined).encode())
    for number in (*heard, 6):
        for client in (0, 10):
            run.write_observation(
                Observation(
                    round=number,
                    sender=f"client-{client}",
                    receiver="server",
                    kind=Kind.GRADIENT,
                    update={"x": torch.ones(2)},
                    num_examples=number,
                )
            )

    [answer] = AttackWorker(str(run.root)).attack(["round-00005-client-0-to-server"], "joined")

    assert answer["status"] == "done"
    [(record, guess)] = run.reconstructions()
    assert (record["round"], record["victim"]) == (5, "client-0")
    assert guess.labels is not None
    assert guess.labels.tolist() == rounds
    assert guess.notes == {"batch size": 5.0}


def test_a_worker_answers_each_line_with_one(run: RunDirectory) -> None:
    jobs = [
        json.dumps({"observations": [FIRST], "attack": title}) for title in ("noise", "own.GivesUp")
    ]
    answers = io.StringIO()

    serve(str(run.root), jobs, answers)

    lines = [json.loads(line) for line in answers.getvalue().splitlines()]
    assert [[one["status"] for one in line] for line in lines] == [["done"], ["failed"]]


def test_a_worker_refuses_an_attack_that_does_not_exist(run: RunDirectory) -> None:
    replace_bytes(run.config, b'name = "x"\n[[attacks]]\nname = "inverting-gradient"\n')

    with pytest.raises(ConfigError, match=r"'inverting-gradient'; did you mean 'inverting-grad"):
        AttackWorker(str(run.root))


SEALED = """
import os, sys
from pathlib import Path
from fedsim.attacking import seal_off
from fedsim.files import read_tensors
from fedsim.records import RunDirectory

run = RunDirectory(Path(sys.argv[1]))
truth = next((run.root / "truth").iterdir())
run.append_score({"labels": [3]})
seal_off(run.root)
link = run.root / "link"
link.symlink_to(truth)
os.chdir(run.root)
tries = {
    "open": lambda: open(truth, "rb"),
    "bytes": lambda: open(os.fsencode(truth), "rb"),
    "read": lambda: truth.read_bytes(),
    "descriptor": lambda: os.open(truth, os.O_RDONLY),
    "tensors": lambda: read_tensors(truth),
    "relative": lambda: open(os.path.join("truth", truth.name), "rb"),
    "around": lambda: open(os.path.join("observations", "..", "truth", truth.name), "rb"),
    "link": lambda: link.read_bytes(),
    "write": lambda: truth.write_bytes(b""),
    "memory": lambda: open("memory/client-0.json", "w"),
    "true labels": lambda: run.scores(),
    "how close": lambda: open(run.summary),
    "originals": lambda: open(run.report),
    "pictures": lambda: open(run.pictures / "gallery.png", "wb"),
    "tensorboard": lambda: open("tensorboard/events"),
    "mlflow": lambda: open("mlflow/mlflow.db"),
}
for name, attempt in tries.items():
    try:
        attempt()
    except PermissionError as error:
        assert "the truth is sealed" in str(error), error
    else:
        print("opened by", name)
run.read_observation(run.observation_records()[0]["id"])
open("scores.jsonl.txt", "w").close()  # a name that only begins like one
"""


def test_a_worker_that_is_sealed_off_can_open_every_file_but_the_truth(run: RunDirectory) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SEALED, str(run.root)], capture_output=True, text=True, check=False
    )

    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)


def test_a_worker_needs_nothing_of_a_run_but_what_was_heard_and_told(
    run: RunDirectory, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    hand_over(run.root, own)
    for part in ("observations", "oracle"):
        if (run.root / part).is_dir():
            shutil.copytree(run.root / part, own / part)

    told = AttackWorker(str(own)).attack([FIRST], "noise")

    assert [one["status"] for one in told] == ["done"]
    assert not (own / "truth").exists()


CONTRACT = """
import sys
import fedsim.attacking
import fedsim.engines.ray
from pathlib import Path
from fedsim.knowledge import read_knowledge
from fedsim.records import RunDirectory

assert read_knowledge(RunDirectory(Path(sys.argv[1]))).model is not None
private = ("fedsim.truth", "fedsim.data", "fedsim.tasks", "fedsim.stages", "attacks.metrics")
print(*(name for name in sys.modules if name.startswith(private)))
"""


@pytest.mark.slow
def test_no_process_that_runs_attacks_loads_what_reads_data_or_truth(run: RunDirectory) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CONTRACT, str(run.root)], capture_output=True, text=True, check=False
    )

    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
