"""`fedsim topology`, as a user types it."""

import json
import sys
from pathlib import Path

import pytest

from fedsim import cli
from fedsim.topologies.network import PeerNetwork


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fedsim", "topology", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_the_table_says_what_the_graph_is_like(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "random-regular", "--peers", "12", "--option", "degree=3") == 0

    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "random-regular, 12 peers" in lines
    assert "links 18" in lines
    assert "peers that one hears 3" in lines
    assert "doubly stochastic yes" in lines


def test_json_is_what_a_run_records(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--peers", "9", "--mixing", "uniform", "--seed", "4", "--resample-every", "2")

    code = command(monkeypatch, "erdos-renyi", *options, "--round", "5", "--json")

    network = PeerNetwork(
        name="erdos-renyi", num_peers=9, mixing_name="uniform", seed=4, resample_every=2
    )
    assert code == 0
    assert json.loads(capsys.readouterr().out) == network.record(5)


def test_it_draws_the_graph_if_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "ring", "--draw", str(tmp_path / "ring.svg")) == 0

    assert (tmp_path / "ring.svg").stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["rign"], "unknown topology 'rign'; did you mean 'ring'?"),
        (["server"], "'server' is no graph of peers"),
        (["ring", "--peers", "1"], "Invalid value for '--peers'"),
        (["ring", "--mixing", "uniformly"], "did you mean 'uniform'?"),
        (["ring", "--option", "degree"], "--option expects key=value, got 'degree'"),
        (["ring", "--resample-every", "2"], "is for graphs drawn at random"),
        (["torus", "--peers", "14"], "take 12 or 15 of them"),
        (["random-regular", "--option", "degree=x"], "topology.options.degree"),
        (["ring", "--draw", "ring.pdf"], "a drawing ends with .png or .svg"),
        (["mine:graph"], "no module 'mine'"),
    ],
)
def test_bad_input_ends_with_one_message_and_code_2(
    arguments: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = command(monkeypatch, *arguments)

    err = capsys.readouterr().err
    assert code == cli.BAD_INPUT
    assert said in " ".join(err.split())
    assert "Traceback" not in err
