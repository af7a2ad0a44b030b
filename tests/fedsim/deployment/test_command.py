"""The command `fedsim deploy`."""

from typing import Any

import pytest
from typer.testing import CliRunner

from fedsim import cli, driver
from fedsim.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "overrides"),
    [
        ([], ["engine.name=deployment"]),
        (["--nodes", "4"], ["engine.name=deployment", "partition.clients=4"]),
        (["--insecure"], ["engine.name=deployment", "engine.tls=false"]),
        (["--set", "rounds=3"], ["rounds=3", "engine.name=deployment"]),
    ],
    ids=["plain", "nodes", "insecure", "set"],
)
def test_a_deployment_is_a_run_with_that_engine(
    monkeypatch: pytest.MonkeyPatch, options: list[str], overrides: list[str]
) -> None:
    asked: list[Any] = []

    def run(experiment: str, *, overrides: list[str], watch: object) -> None:
        asked.append((experiment, overrides))
        raise ConfigError("that is enough")

    monkeypatch.setattr(driver, "run", run)

    CliRunner().invoke(cli.app, ["deploy", "digits-curious-server", *options])

    assert asked == [("digits-curious-server", overrides)]
