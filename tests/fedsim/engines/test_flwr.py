"""Flower's stock runtime runs the same apps to the same bits."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from fedsim.config import Experiment, parse_experiment
from fedsim.engines import flwr as engine_module
from fedsim.engines.flwr import FlowerSimulation, _end_family
from fedsim.engines.in_process import InProcess
from fedsim.errors import RunFailed
from fedsim.files import digest, read_tensors
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan


def tiny(text: str = "") -> Experiment:
    return parse_experiment(
        f"""
        name = "tiny"
        rounds = 2
        partition = {{ clients = 2 }}
        model = {{ name = "mlp", options = {{ hidden = [6] }} }}
        engine = {{ name = "flwr", workers = 1 }}
        {text}
        """
    )


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


SECURE = '[[defenses]]\nname = "secure-aggregation"'


@pytest.mark.slow
@pytest.mark.flwr_runtime
@pytest.mark.parametrize(("text", "heard"), [("", 4), (SECURE, 6)], ids=["plain", "secure"])
def test_flowers_own_runtime_gives_the_same_bits_and_leaves_nothing_behind(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, heard: int
) -> None:
    make, homes = tempfile.TemporaryDirectory, []

    def remembered(prefix: str) -> "tempfile.TemporaryDirectory[str]":
        homes.append(make(prefix=prefix))
        return homes[-1]

    monkeypatch.setattr(tempfile, "TemporaryDirectory", remembered)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # a cluster that was here and is no more
    plain = RunDirectory.create(tmp_path, "plain")
    InProcess(tiny(text), plain).train()

    FlowerSimulation(tiny(text), run).train()

    assert digest(read_tensors(run.checkpoint)[0]) == digest(read_tensors(plain.checkpoint)[0])
    assert run.views_sha256() == plain.views_sha256()
    assert len(run.observation_records()) == heard
    assert run.events() == []
    assert len(homes) == 1
    assert not Path(homes[0].name).exists()


@pytest.mark.slow
@pytest.mark.flwr_runtime
@pytest.mark.parametrize("encrypted", ["false", "true"])
def test_peers_in_flowers_own_runtime_come_to_the_bits_of_peers_in_process(
    run: RunDirectory, tmp_path: Path, encrypted: str
) -> None:
    ring = 'topology = { name = "ring" }\nprotocol = { name = "d-psgd", encrypted = %s }'
    plain = RunDirectory.create(tmp_path, "plain")
    InProcess(tiny(ring % "false"), plain).train()

    FlowerSimulation(tiny(ring % encrypted), run).train()

    assert run.events() == []
    assert digest(read_tensors(run.checkpoint)[0]) == digest(read_tensors(plain.checkpoint)[0])


def fake_tool(folder: Path, name: str, script: str) -> Path:
    """An executable that plays one of Flower's commands."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{script}\n")
    path.chmod(0o755)
    return path


def test_a_superlink_that_does_not_start_ends_the_run_with_its_last_words(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_tool(tmp_path, "flower-superlink", "raise SystemExit('the port is taken')")
    monkeypatch.setattr(engine_module, "_tool", lambda name: str(tmp_path / name))

    with pytest.raises(RunFailed, match=r"SuperLink did not start: the port is taken$"):
        FlowerSimulation(tiny(), run).train()


HEALTHY = """
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer


class Healthy(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()


HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Healthy).serve_forever()
"""


TRACEBACK = r"OSError: no room\nDuring handling of that:\nRuntimeError: crashed\nsee our pages"


@pytest.mark.parametrize(
    ("output", "noted", "said"),
    [
        ("no such app", None, "Flower's runtime ended after round 0 of 2; it said: no such app$"),
        (TRACEBACK, None, "it said: OSError: no room$"),
        ("no such app", "ConfigError: no", "^ConfigError: no$"),
    ],
    ids=["last words", "cause", "noted"],
)
def test_a_run_that_flower_ends_early_fails_with_the_best_reason_there_is(
    run: RunDirectory,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    output: str,
    noted: str | None,
    said: str,
) -> None:
    fake_tool(tmp_path, "flower-superlink", HEALTHY)
    event = json.dumps({"kind": "server-failed", "message": noted}) + "\n" if noted else ""
    log = run.root / "events.jsonl"
    notes = f"open({str(log)!r}, 'a').write({event!r})"
    fake_tool(tmp_path, "flwr", f"print('hello\\n{output}'); {notes}")
    monkeypatch.setattr(engine_module, "_tool", lambda name: str(tmp_path / name))
    run.append_event("server-failed", "something else, in an earlier try")

    with pytest.raises(RunFailed, match=said):
        FlowerSimulation(tiny(), run).train()


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_a_run_that_settled_early_is_done(run: RunDirectory) -> None:
    settles = tiny("training = { batch_size = 32, learning_rate = 1.0 }\nserver = { patience = 1 }")
    settles = parse_experiment(settles.to_toml(), overrides=["rounds=60"])

    FlowerSimulation(settles, run).train()

    assert 2 < len(run.rounds()) < 61


def test_the_whole_family_of_a_process_is_ended() -> None:
    script = "import subprocess, time; print(subprocess.Popen(['sleep', '600']).pid, flush=True)\n"
    process = subprocess.Popen(
        [sys.executable, "-c", script + "time.sleep(600)"],
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    with process:
        assert process.stdout is not None
        child = int(process.stdout.readline())

        _end_family(process)

    assert process.returncode == -15
    for _ in range(100):  # the child's new parent takes a moment to bury it
        if not Path(f"/proc/{child}").exists() or "Z" in state(child):
            return
        time.sleep(0.05)
    pytest.fail(f"process {child} lives on")


def state(process: int) -> str:
    try:
        return Path(f"/proc/{process}/stat").read_text().split(")")[1].split()[0]
    except OSError:
        return "Z"


def test_flower_is_told_nothing_of_proxies_and_tells_nobody_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    monkeypatch.setenv("http_proxy", "http://proxy.example")

    environment = engine_module._environment(tmp_path)

    assert not any("proxy" in name.lower() for name in environment)
    assert environment["FLWR_TELEMETRY_ENABLED"] == "0"
    assert environment["FLWR_HOME"] == str(tmp_path)
    assert str(Path(sys.executable).parent) in environment["PATH"].split(os.pathsep)


OWN_ACTIVE = '''
from collections import OrderedDict

import torch
from torch import nn
from attacks.observation import Reconstruction
from attacks.threats import ACTIVE


class Active:
    """Put a layer in front, and send noise that depends on what was heard before."""

    needs = ACTIVE

    def check(self, known):
        pass

    def implant(self, model, input_shape, num_classes):
        first = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.Unflatten(1, input_shape))
        return nn.Sequential(OrderedDict(imprint=first, rest=model))

    def tamper(self, weights, known, *, receiver, target, earlier, rng):
        scale = 1.0 + sum(float(seen.update["rest.linear.bias"].norm()) for seen in earlier)
        return {name: scale * torch.randn(w.shape, generator=rng) for name, w in weights.items()}

    def __call__(self, seen, known, *, rng, budget=None):
        return Reconstruction(inputs=None, labels=None)
'''


@pytest.mark.slow
@pytest.mark.flwr_runtime
def test_a_malicious_server_does_the_same_to_the_bit_in_flowers_own_runtime(
    run: RunDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_active_flwr.py").write_text(OWN_ACTIVE)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = tiny(
        'adversary = { threat = "malicious-server", victims = [1] }\n'
        '[[attacks]]\nname = "own_active_flwr:Active"'
    )
    plain = RunDirectory.create(tmp_path, "plain")
    for one in (plain, run):
        write_plan(check(settings), one)
    InProcess(settings, plain).train()

    FlowerSimulation(settings, run).train()

    assert digest(read_tensors(run.checkpoint)[0]) == digest(read_tensors(plain.checkpoint)[0])
    assert run.views_sha256() == plain.views_sha256()
    assert [one.get("tampered") for one in run.rounds()] == [None, [1], [1]]
