"""Runs on Flower's own processes."""

import functools
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from fedsim.config import Experiment, parse_experiment
from fedsim.deployment import engine as engine_module
from fedsim.deployment import parts, processes
from fedsim.deployment.engine import Deployment
from fedsim.deployment.flower_private import Control
from fedsim.deployment.parts import Site
from fedsim.deployment.processes import Part
from fedsim.engines.in_process import InProcess
from fedsim.errors import RunFailed
from fedsim.files import digest, read_tensors
from fedsim.records import RunDirectory

STAR = 'adversary = { threat = "curious-server" }'
ENCRYPTED_RING = """
topology = { name = "ring" }
protocol = { name = "d-psgd", encrypted = true }
adversary = { threat = "curious-neighbour" }
"""
TEXTS = (
    "data.name=sentences",
    'data.options={ length = 8, vocabulary_size = 300, texts = ["One came.", "Two left again."] }',
    "model.name=bert",
    "model.options={ layers = 1, width = 8 }",
)
ROWS = ("data.name=breast-cancer",)


def tiny(
    text: str = STAR,
    *,
    rounds: int = 2,
    clients: int = 2,
    tls: bool = True,
    sets: Sequence[str] = (),
) -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = {rounds}
        partition = {{ clients = {clients} }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        engine = {{ name = "deployment", tls = {str(tls).lower()} }}
        {text}
        """,
        overrides=sets,
    )


def heard(run: RunDirectory) -> dict[str, bytes]:
    """Every file of what the adversary heard, of whole messages and of views among peers."""
    return {
        str(path.relative_to(run.root)): path.read_bytes()
        for folder in (run.root / "observations", run.views)
        for path in sorted(folder.rglob("*.*"))
    }


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def alive(home: Path) -> set[int]:
    """Processes of deployments whose things are below a folder: it stands in their commands."""
    found = set()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes()
                state = (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]
            except OSError:
                continue
            if b"fedsim.deployment." in command and str(home).encode() in command and state != "Z":
                found.add(int(folder.name))
    return found


@pytest.fixture(autouse=True)
def _no_orphans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever happens in a test of this file, none of its processes is left, and no key."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield
    deadline = time.monotonic() + 15.0
    while left := alive(tmp_path):
        assert time.monotonic() < deadline, f"processes {left} live on"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.flwr_runtime
@pytest.mark.parametrize(
    ("text", "sets", "clients", "tls"),
    [(STAR, (), 3, True), (STAR, TEXTS, 2, False), (ENCRYPTED_RING, ROWS, 3, True)],
    ids=["images and a server", "texts over plain HTTP", "rows among peers who encrypt"],
)
def test_a_deployment_gives_the_bits_of_a_run_in_one_process(
    run: RunDirectory, tmp_path: Path, text: str, sets: Sequence[str], clients: int, tls: bool
) -> None:
    plain = RunDirectory.create(tmp_path, "plain")
    InProcess(tiny(text, rounds=3, clients=clients, sets=sets), plain).train()

    Deployment(tiny(text, rounds=3, clients=clients, tls=tls, sets=sets), run).train()

    assert run.events() == []
    assert [one["round"] for one in run.rounds()] == [0, 1, 2, 3]
    assert digest(read_tensors(run.checkpoint)[0]) == digest(read_tensors(plain.checkpoint)[0])
    assert heard(run) == heard(plain) != {}
    assert run.views_sha256() == plain.views_sha256()
    assert not (run.root / "logs").exists()


class Meddled(Deployment):
    """A deployment in which something happens after round `after`."""

    def __init__(
        self,
        experiment: Experiment,
        run: RunDirectory,
        happens: Callable[["engine_module._Federation"], None],
        after: int = 1,
    ) -> None:
        super().__init__(experiment, run)
        self.happens = happens
        self.after = after
        self.homes: list[Path] = []

    def _start(self, site: Site, stack: ExitStack) -> "engine_module._Federation":
        self.homes.append(site.home)
        federation = super()._start(site, stack)
        thread = threading.Thread(target=self._happen, args=(federation,), daemon=True)
        thread.start()
        stack.callback(thread.join)
        return federation

    def _happen(self, federation: "engine_module._Federation") -> None:
        while len(self.run.rounds()) <= self.after:
            if federation.server_app.ended is not None:
                return
            time.sleep(0.01)
        self.happens(federation)


def kill(part: Part | None) -> None:
    assert part is not None
    os.kill(part.process.pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_a_node_that_is_killed_is_started_again_and_the_run_goes_on(run: RunDirectory) -> None:
    rounds = 60
    began = time.monotonic()

    Meddled(
        tiny(rounds=rounds), run, lambda federation: kill(federation.nodes[1].part), after=3
    ).train()

    assert len(run.rounds()) == rounds + 1
    (lost, *rest) = [one for one in run.events() if one["kind"] == "node-lost"]
    assert rest == []
    assert lost["client"] == 1
    assert lost["message"].endswith("ended with code -9; it is started again")
    # the others went on without it, and it came back
    replies = [one["replies"] - one["rejected"] for one in run.rounds()[1:]]
    assert min(len(one["clients"]) for one in run.rounds()[1:]) == 1
    assert replies[0] == 2
    assert time.monotonic() - began < 100.0  # Flower by itself takes a minute to notice


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_a_client_that_is_killed_costs_its_round_and_nothing_else(run: RunDirectory) -> None:
    killed_over = list[bytes]()

    def kill_client(federation: "engine_module._Federation") -> None:
        crew = federation.executor.process.pid
        child = int(Path(f"/proc/{crew}/task/{crew}/children").read_text().split()[0])
        note = federation.site.home / "executor" / "task-0"
        while federation.server_app.ended is None:
            if note.is_file():  # it is at a message; hold it, and see how far it came
                os.kill(child, signal.SIGSTOP)
                told = note.read_bytes() if note.is_file() else b""
                if told.endswith(b"\n"):  # it does not know its answer yet
                    killed_over.append(told)
                    os.kill(child, signal.SIGKILL)
                    return
                os.kill(child, signal.SIGCONT)
            time.sleep(0.001)

    Meddled(tiny(rounds=30), run, kill_client, after=3).train()

    assert len(killed_over) == 1
    assert len(run.rounds()) == 31
    assert [one["kind"] for one in run.events()] == ["client-failed"]
    heard = [len(one["clients"]) for one in run.rounds()[1:]]
    assert sorted(heard) == [1] + [2] * 29


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_the_process_of_all_clients_is_replaced_when_it_is_killed(run: RunDirectory) -> None:
    Meddled(tiny(rounds=30), run, lambda federation: kill(federation.executor), after=3).train()

    assert len(run.rounds()) == 31
    kinds = [one["kind"] for one in run.events()]
    assert kinds.count("executor-lost") == 1


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_a_superlink_that_is_killed_ends_the_run_which_can_be_resumed_to_the_same_bits(
    run: RunDirectory, tmp_path: Path
) -> None:
    plain = RunDirectory.create(tmp_path, "plain")
    InProcess(tiny(rounds=20), plain).train()
    meddled = Meddled(tiny(rounds=20), run, lambda federation: kill(federation.superlink))

    with pytest.raises(RunFailed, match="superlink ended with code -9"):
        meddled.train()

    assert 2 <= len(run.rounds()) < 21
    assert {one.name for one in (run.root / "logs").iterdir()} == {
        "superlink.log",
        "serverapp.log",
        "executor.log",
        "supernode-0.log",
        "supernode-1.log",
    }
    assert not meddled.homes[0].exists()  # keys and certificates are gone

    run.repair()
    Deployment(tiny(rounds=20), run).train()

    assert digest(read_tensors(run.checkpoint)[0]) == digest(read_tensors(plain.checkpoint)[0])
    assert run.views_sha256() == plain.views_sha256()
    assert not (run.root / "logs").exists()


@pytest.mark.slow
@pytest.mark.flwr_runtime
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=["politely", "by force"])
def test_a_server_app_that_is_ended_early_is_no_run_that_is_done(
    run: RunDirectory, how: signal.Signals
) -> None:
    def end(federation: "engine_module._Federation") -> None:
        os.kill(federation.server_app.process.pid, how)

    run.append_event("server-failed", "something else, in an earlier try")

    with pytest.raises(RunFailed, match=r"^serverapp ended with code (0|-9); it said:"):
        Meddled(tiny(rounds=200), run, end).train()

    assert 2 <= len(run.rounds()) < 201


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_a_run_that_settled_early_is_done(run: RunDirectory) -> None:
    learns = "training = { batch_size = 32, learning_rate = 1.0 }\nserver = { patience = 1 }"

    Deployment(tiny(f"{STAR}\n{learns}", rounds=60), run).train()

    assert 2 < len(run.rounds()) < 61


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_what_goes_wrong_in_the_server_is_what_the_run_says(run: RunDirectory) -> None:
    run.checkpoint.write_bytes(b"no tensors")

    with pytest.raises(RunFailed) as failure:
        Deployment(tiny(), run).train()

    noted = [one["message"] for one in run.events() if one["kind"] == "server-failed"]
    assert str(failure.value) == noted[-1]


def test_a_part_that_does_not_start_ends_the_run_with_its_last_words(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "SUPERLINK", "fedsim.deployment.no_such_module")

    with pytest.raises(RunFailed, match=r"superlink ended with code 1; it said:\n.*no_such_module"):
        Deployment(tiny(), run).train()

    assert "no_such_module" in (run.root / "logs" / "superlink.log").read_text()


@pytest.mark.parametrize("order", ["register", "start"])
def test_an_order_that_a_superlink_refuses_ends_the_run_in_words(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch, order: str
) -> None:
    for name in ("superlink", "server_app", "executor", "supernode"):
        monkeypatch.setattr(parts, f"start_{name}", lambda *_, **__: None)
    monkeypatch.setattr(processes, "wait_until", lambda *_, **__: None)
    monkeypatch.setattr(processes, "end", lambda _: None)

    def refuse(*_: object) -> int:
        raise httpx.ConnectError("connection refused")

    monkeypatch.setattr(Control, "register", lambda *_: 1)
    monkeypatch.setattr(Control, order, refuse)

    with pytest.raises(RunFailed, match="SuperLink did not do as it was told: connection refused"):
        Deployment(tiny(), run).train()


DEPLOY = [sys.executable, "-m", "fedsim.cli", "deploy", "digits-curious-server", "--nodes", "2"]


@pytest.mark.slow
@pytest.mark.flwr_runtime
@pytest.mark.parametrize(
    ("stop", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)], ids=["Ctrl-C", "killed"]
)
def test_nothing_is_left_when_the_command_is_ended(
    tmp_path: Path, stop: signal.Signals, code: int
) -> None:
    process = subprocess.Popen(
        DEPLOY,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # what a shell has started in the background is deaf to Ctrl-C, and so are its children
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    rounds = tmp_path / "runs" / "digits-curious-server-0001" / "rounds.jsonl"
    with process:
        deadline = time.monotonic() + 200.0
        while not (rounds.is_file() and len(rounds.read_text().splitlines()) > 2):
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.1)

        assert len(alive(tmp_path)) >= 5  # or else this test would see none of them
        process.send_signal(stop)

        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert process.returncode == code
    if stop is signal.SIGINT:
        assert "go on with fedsim run --resume" in " ".join(said.split())
    # and, as after every test of this file, no process
