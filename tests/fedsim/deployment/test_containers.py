"""What the containers run; `tests/compose.sh` runs the containers themselves."""

import datetime
import logging
import os
import signal
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography import x509

from fedsim import driver
from fedsim.config import read_experiment
from fedsim.deployment import containers
from fedsim.deployment.certificates import issue
from fedsim.deployment.containers import DIRECTED, Directed, Places, direct, prepare
from fedsim.deployment.engine import LOOK_S
from fedsim.deployment.processes import environment, free_ports
from fedsim.deployment.spool import SpoolPool, SpoolWorker
from fedsim.errors import ConfigError, RunFailed
from fedsim.files import read_json
from fedsim.records import RunDirectory


@pytest.fixture
def places(tmp_path: Path) -> Places:
    for name in ("authority", "server-key", "secret", "enrolment", "node", "runs/demo/truth"):
        (tmp_path / name).mkdir(parents=True)
    return Places(tmp_path)


def shown(places: Places) -> x509.Certificate:
    return x509.load_pem_x509_certificate((places.server_key / "server.crt").read_bytes())


def test_places_are_those_of_the_image_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("FEDSIM_PLACES", "FEDSIM_SUPERLINK", "FEDSIM_INSECURE"):
        monkeypatch.delenv(name, raising=False)
    assert Places.here() == Places(Path("/srv"), "superlink:8000", tls=True)

    monkeypatch.setenv("FEDSIM_SUPERLINK", "tap:8000")
    monkeypatch.setenv("FEDSIM_INSECURE", "1")

    assert Places.here() == Places(Path("/srv"), "tap:8000", tls=False)
    assert Places.here().authority is None


def test_what_is_prepared_is_for_its_owner_alone_and_names_server_and_tap(places: Places) -> None:
    prepare(places)

    for secret in (places.secret, places.server_key / "server.key"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    names = shown(places).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["superlink", "tap", "localhost"]
    assert places.authority is not None
    ssl.create_default_context(cafile=places.authority)
    assert not list((places.root / "authority").glob("*.key"))


def test_what_was_prepared_stays_while_it_is_good(places: Places) -> None:
    prepare(places)
    before = {path: path.read_bytes() for path in places.root.rglob("*") if path.is_file()}

    prepare(places)

    assert {p: p.read_bytes() for p in places.root.rglob("*") if p.is_file()} == before


def test_a_certificate_that_ends_soon_is_made_anew(places: Places) -> None:
    prepare(places)
    for path in places.server_key.iterdir():
        path.unlink()
    issue(places.server_key, lifetime=datetime.timedelta(days=1))
    old = shown(places)

    prepare(places)

    assert shown(places).serial_number != old.serial_number
    assert places.authority is not None
    authority = x509.load_pem_x509_certificate(places.authority.read_bytes())
    shown(places).verify_directly_issued_by(authority)


def signed_by_its_authority(places: Places) -> bool:
    assert places.authority is not None
    authority = x509.load_pem_x509_certificate(places.authority.read_bytes())
    shown(places).verify_directly_issued_by(authority)
    return (places.server_key / "server.key").is_file()


@pytest.mark.parametrize("at", ["issue", "replace_bytes"])
def test_what_a_kill_left_half_prepared_is_prepared_anew(
    places: Places, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    prepare(places)
    (places.server_key / "server.crt").unlink()  # so that all is made anew
    do = getattr(containers, at)

    def killed(*what: object, **how: object) -> None:
        if at == "issue":
            do(*what, **how)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(containers, at, killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(places)

    prepare(places)

    assert signed_by_its_authority(places)


@pytest.mark.parametrize("damage", ["key gone", "key cut", "another's key", "another's authority"])
def test_certificates_that_do_not_fit_together_are_made_anew(
    places: Places, damage: str, tmp_path: Path
) -> None:
    prepare(places)
    other = issue(tmp_path / "other")
    key = places.server_key / "server.key"
    assert places.authority is not None
    if damage == "key gone":
        key.unlink()
    elif damage == "key cut":
        key.write_bytes(key.read_bytes()[:40])
    elif damage == "another's key":
        key.write_bytes(other.key.read_bytes())
    else:
        places.authority.write_bytes(other.authority.read_bytes())
    old = shown(places)

    prepare(places)

    assert shown(places).serial_number != old.serial_number
    assert signed_by_its_authority(places)


class Part:
    """A ServerApp that ends when it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    @property
    def ended(self) -> int | None:
        self.looks -= 1
        return 0 if self.looks < 0 else None


def test_a_superlink_that_stays_away_ends_the_run_and_one_that_comes_back_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(containers, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    minutes = int(60 / LOOK_S)

    containers._await_end(cast(Any, Part(10 * minutes)), lambda: now % 100 > 90)

    with pytest.raises(RunFailed, match="SuperLink has not answered for 120 s"):
        containers._await_end(cast(Any, Part(10 * minutes)), lambda: False)


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConfigError("no"), 2), (RunFailed("no"), 3), (KeyboardInterrupt(), 130)],
    ids=["bad input", "failed", "interrupted"],
)
def test_roles_end_with_the_codes_of_the_commands(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    def play(*_: object) -> int:
        raise error

    monkeypatch.setattr(sys, "argv", ["containers", "prepare"])
    monkeypatch.setattr(containers, "_play", play)
    monkeypatch.setattr(containers, "LOG", logging.getLogger("fedsim.test"))
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(os, "umask", lambda _: 0)

    with pytest.raises(SystemExit) as end:
        containers.main()

    assert end.value.code == code


def test_a_run_of_containers_leaves_its_attacks_to_others(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDSIM_PLACES", str(places.root))
    experiment = read_experiment("digits-curious-server", [f"engine.name={DIRECTED}"])

    pool = Directed(experiment, RunDirectory(places.run)).open_pool()

    assert isinstance(pool, SpoolPool)


def test_attackers_are_told_what_they_know_and_nothing_of_scores(
    places: Places, tmp_path: Path
) -> None:
    for name in ("config.toml", "knowledge.json", "scores.jsonl", "report.html", "summary.json"):
        (places.run / name).write_text(name)

    containers.hand_over(places.run, places.told)
    containers.hand_over(places.told, tmp_path / "own")

    own = {path.name: path.read_text() for path in (tmp_path / "own").iterdir()}
    assert own == {name: name for name in ("config.toml", "knowledge.json")}


def test_a_run_that_was_done_is_not_done_again(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    (places.run / "summary.json").write_text('{"status": "done"}')
    monkeypatch.setattr(driver, "run", pytest.fail)
    monkeypatch.setattr(driver, "resume", pytest.fail)

    assert direct(places, "digits-curious-server", [], nodes=2) == {"status": "done"}
    # attack workers that come later hear it as well
    assert read_json(places.run / "jobs" / "over.json") == {"status": "done"}


def test_whoever_attacks_is_told_that_a_run_is_done_also_later(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = SimpleNamespace(summary={"status": "done"})
    monkeypatch.setattr(containers, "gathered", lambda *_, **__: [None] * 2)
    monkeypatch.setattr(driver, "run", lambda *_, **__: ended)
    monkeypatch.setattr(driver, "resume", lambda *_, **__: ended)
    run = RunDirectory(places.run)
    for already in ("", "seed = 1"):
        if already:
            run.config.write_text(already)
        direct(places, "digits-curious-server", [], nodes=2)

        assert SpoolWorker(run, cast(Any, None), 1).over
        (run.root / "jobs" / "over.json").unlink()


def test_an_experiment_has_as_many_clients_as_nodes_enrolled(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "gathered", lambda *_, **__: [None] * 7)
    seen: dict[str, object] = {}

    def run(experiment: str, *, overrides: list[str], into: RunDirectory, watch: object) -> None:
        seen.update(clients=read_experiment(experiment, overrides).partition.clients, into=into)
        raise ConfigError("enough")

    monkeypatch.setattr(driver, "run", run)

    with pytest.raises(ConfigError, match="enough"):
        direct(places, "digits-curious-server", ["training.batch_size=2"], nodes=2)

    assert seen == {"clients": 7, "into": RunDirectory(places.run)}


@contextmanager
def running(root: Path, port: int, *words: str) -> Iterator["subprocess.Popen[str]"]:
    """A role as a process, with places of its own in which only the run is shared."""
    process = subprocess.Popen(
        [sys.executable, "-m", *words],
        env=environment(root / "flwr")
        | {"FEDSIM_PLACES": str(root), "FEDSIM_SUPERLINK": f"127.0.0.1:{port}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)


@pytest.mark.slow
@pytest.mark.flwr_runtime
@pytest.mark.timeout(900)
def test_the_roles_together_make_the_bits_of_a_run_in_process(
    places: Places, tmp_path_factory: pytest.TempPathFactory
) -> None:
    port, *node_ports = free_ports(3)
    settings = ["rounds=3", "adversary.rounds=[1,3]"]
    attacks = 'attacks=[{name="auto", time_budget_s=5}]'
    role = "fedsim.deployment.containers"
    with ExitStack() as stack:
        with running(places.root, port, role, "prepare") as preparing:
            assert preparing.wait(120) == 0
        server = places.server_key
        stack.enter_context(
            running(
                places.root, port, "fedsim.deployment.superlink",
                "--port", str(port), "--isolation", "process",
                "--superexec-auth-secret-file", str(places.secret),
                "--ssl-ca-certfile", str(places.authority), "--enable-supernode-auth",
                "--ssl-certfile", str(server / "server.crt"),
                "--ssl-keyfile", str(server / "server.key"),
            )
        )  # fmt: skip
        for number, own in enumerate(node_ports):
            root = tmp_path_factory.mktemp(f"node-{number}")
            (root / "node").mkdir()
            for shared in ("authority", "enrolment", "runs"):
                (root / shared).symlink_to(places.root / shared)
            stack.enter_context(running(root, port, role, "node", "--port", str(own)))
        stack.enter_context(running(places.root, port, role, "attack", "--workers=1"))
        sets = [f"--set={one}" for one in [*settings, attacks]]
        directing = stack.enter_context(
            running(places.root, port, role, "direct", "digits-curious-server", *sets)
        )
        begun = time.monotonic()
        said, _ = directing.communicate(timeout=600)
        assert directing.returncode == 0, (said, time.monotonic() - begun)
    found = RunDirectory.open(places.run)

    same = driver.run(
        "digits-curious-server",
        overrides=[
            *settings, "partition.clients=2", "attacks=[]",
            f"output.directory={tmp_path_factory.mktemp('same')}",
        ],
    )  # fmt: skip

    assert found.views_sha256() == RunDirectory(same.directory).views_sha256()
    assert read_json(found.summary)["weights_sha256"] == same.summary["weights_sha256"]
    assert len(found.scores()) == 2 * 2  # rounds, victims
    assert {score["status"] for score in found.scores()} <= {"done", "unfinished"}
    assert not any(event["kind"].startswith("attack-") for event in found.events())
