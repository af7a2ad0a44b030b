"""Whether an installation is whole."""

import importlib.util
import sys
from importlib.machinery import ModuleSpec

import pytest
import torch

from fedsim.doctor import examine


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
