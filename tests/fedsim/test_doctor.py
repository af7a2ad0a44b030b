"""Whether an installation is whole."""

import errno
import importlib.util
import os
import socket
import sys
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch

from fedsim import doctor
from fedsim.doctor import examine
from fedsim.records import RunDirectory


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder without runs: those of whoever runs the tests are not theirs to judge."""
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))


def test_this_installation_is_whole() -> None:
    assert [finding for finding in examine() if not finding.ok] == []


@pytest.mark.parametrize("origin", ["/elsewhere/server/__init__.py", None])
def test_a_package_of_the_same_name_elsewhere_is_found(
    monkeypatch: pytest.MonkeyPatch, origin: str | None
) -> None:
    find = importlib.util.find_spec

    def shadowed(name: str) -> ModuleSpec | None:
        return ModuleSpec(name, None, origin=origin) if name == "server" else find(name)

    monkeypatch.setattr(importlib.util, "find_spec", shadowed)

    [wrong] = [finding for finding in examine() if not finding.ok]
    assert wrong.what.startswith("server: not the packages beside fedsim;")


def test_what_is_too_old_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    monkeypatch.setattr(sys, "version_info", (3, 10, 0))

    old = [finding.what for finding in examine() if not finding.ok]

    assert len(old) == 2
    assert old[0] == "Python 3.10.0; at least 3.11 is needed"
    assert old[1].endswith("torch must be at least 2.10")


def test_a_package_that_is_too_old_or_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str) -> str:
        if name == "ray":
            return "2.40.0"
        if name == "safetensors":
            raise PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(doctor, "version", found)

    [wrong] = [finding for finding in examine() if not finding.ok]
    assert "ray 2.40.0 is not" in wrong.what
    assert "safetensors is missing" in wrong.what
    assert "install the versions" in wrong.what


def test_more_threads_than_cores_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "100000")

    [wrong] = [finding for finding in examine() if not finding.ok]
    assert "set it to 1" in wrong.what


def test_a_machine_without_ports_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> socket.socket:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(socket, "create_server", refuse)

    [wrong] = [finding for finding in examine() if not finding.ok]
    assert "allow 127.0.0.1" in wrong.what


def test_a_gpu_that_pytorch_cannot_use_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    exists = Path.exists
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "exists", lambda self: str(self) == "/dev/nvidiactl" or exists(self))

    [wrong] = [finding for finding in examine(tmp_path) if not finding.ok]
    assert "bring it up to date" in wrong.what


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """A run with a key."""
    made = RunDirectory.create(tmp_path, "tiny")
    made.config.write_text('name = "tiny"\n')
    made.memory.mkdir(mode=0o700)
    key = made.memory / "keys-client-0.json"
    key.touch(mode=0o600)
    return made


def test_runs_as_fedsim_makes_them_are_for_their_owner(run: RunDirectory) -> None:
    assert [finding for finding in examine(run.root.parent) if not finding.ok] == []


@pytest.mark.parametrize(
    ("part", "mode", "said"),
    [
        (".", 0o755, "others may look into what was overheard: chmod 700"),
        ("memory/keys-client-0.json", 0o644, "keys that others may read: chmod 600"),
    ],
)
def test_what_others_may_read_is_found_and_how_to_close_it(
    run: RunDirectory, part: str, mode: int, said: str
) -> None:
    (run.root / part).chmod(mode)

    [wrong] = [finding for finding in examine(run.root.parent) if not finding.ok]
    assert wrong.what.startswith(said)
    assert run.root.name in wrong.what


def test_a_link_to_a_run_is_not_looked_at(run: RunDirectory) -> None:
    (run.root.parent / "newest").symlink_to(run.root)

    findings = examine(run.root.parent)

    assert [finding for finding in findings if not finding.ok] == []
    assert any("1 links in" in finding.what for finding in findings)


def test_a_run_of_somebody_else_is_passed_over(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    (foreign := run.root.parent / "foreign").mkdir(mode=0o700)
    is_file = Path.is_file

    def refused(path: Path) -> bool:
        if path.parent == foreign:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", refused)

    findings = examine(run.root.parent)

    assert [finding for finding in findings if not finding.ok] == []
    assert any("1 folders in" in finding.what for finding in findings)
    assert any("1 runs in" in finding.what for finding in findings)


def test_a_truth_that_others_may_read_is_found(run: RunDirectory) -> None:
    run.root.chmod(0o755)
    (run.root / "truth").chmod(0o755)

    [wrong] = [finding for finding in examine(run.root.parent) if not finding.ok]
    assert "private data can be read by others" in wrong.what
    assert "truth" in wrong.what
