"""The commands, as a user types them."""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from fedsim import cli

TINY = """
name = "tiny"
rounds = 2
[model]
name = "mlp"
options = { hidden = [16] }
[partition]
clients = 3
[[attacks]]
name = "label"
"""


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.toml"
    path.write_text(TINY)
    return path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Type one command; return its exit code."""
    monkeypatch.setattr(sys, "argv", ["fedsim", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_run_prints_the_summary_alone_on_stdout_when_asked_for_json(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command(monkeypatch, "run", str(tiny), "--set", "seed=3", "--json")

    out, err = capsys.readouterr()
    assert code == cli.DONE
    assert json.loads(out)["seed"] == 3
    assert "victims" in err  # the live table


def test_run_ends_with_the_path_of_the_report(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command(monkeypatch, "run", str(tiny))

    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert code == cli.DONE
    assert Path(last).name == "report.html"
    assert Path(last).is_file()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "nothing.toml"], "no experiment file 'nothing.toml'"),
        (["run", "digits-curious-sever"], "did you mean 'digits-curious-server'?"),
        (["run", "tiny.toml", "--set", "rounds=-1"], "rounds must be at least 1, got -1"),
        (["run", "tiny.toml", "--set", "attacks.label.name=dgl"], "did you mean 'dlg'?"),
        (["run", "tiny.toml", "--set", "model.name=lenet"], "did you mean 'dlg-lenet'?"),
        (["run", "tiny.toml", "--set", "data.name=mnist", "--set", "data.root=."], "mnist"),
        (["run", "tiny.toml", "--set", "server.strategy=fedagv"], "did you mean"),
        (["run", "tiny.toml", "--set", "server.options.etta=1"], "unknown option 'etta'"),
        (
            ["run", "tiny.toml", "--set", 'adversary.grants=["change-weights"]'],
            "'curious-server' only listens",
        ),
        (["run", "tiny.toml", "--set", "engine.name=rey"], "did you mean 'ray'?"),
        (["run", "tiny.toml", "--set", "adversary.threat=server"], "did you mean"),
        (["run", "tiny.toml", "--set", "engine.device=cuda:9"], "engine.device"),
        (["run", "tiny.toml", "--set", "training.batch_size=1000"], "training.batch_size must be"),
        (
            [
                *("run", "tiny.toml"),
                *("--set", "model.name=torchvision:resnet18", "--set", "model.options={}"),
            ],
            "cannot train on a batch of 1",
        ),
        (["run", "tiny.toml", "--resume", "x"], "either an experiment or --resume"),
        (["run"], "either an experiment or --resume"),
        (["run", "--resume", "x"], "'x' is not a run directory"),
        (["list", "atacks"], "did you mean 'attacks'?"),
        (["report", "x"], "'x' is not a run directory"),
        (["run", "tiny.toml", "--nonsense"], "No such option"),
        (["sweep", "nothing.toml"], "no sweep file 'nothing.toml'"),
        (["sweep", "frontier-digit"], "did you mean 'frontier-digits'?"),
        (["sweep", "frontier-digits", "--set", "seeds=[]"], "seeds"),
        (["sweep", "frontier-digits", "--set", "attackers.plain.name=dgl"], "did you mean 'dlg'?"),
        (["gate", "tiny.toml"], "either --max-psnr or --max-success-rate"),
        (["gate", "tiny.toml", "--max-success-rate", "0"], "no number of attacks proves"),
        (["gate", "tiny.toml", "--max-psnr", "15", "--attack", "dgl"], "did you mean 'dlg'?"),
        (["gate", "tiny.toml", "--max-psnr", "15", "--victims", "9"], "victims must be at least"),
    ],
)
def test_bad_input_ends_with_one_message_and_code_2(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    said: str,
) -> None:
    code = command(monkeypatch, *arguments)

    err = capsys.readouterr().err
    assert code == cli.BAD_INPUT
    assert said in err.replace("\n", " ")
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "family",
    [
        *("attacks", "defenses", "engines", "experiments", "mixings", "models", "partitions"),
        *("protocols", "strategies", "sweeps", "tasks", "threats", "topologies"),
    ],
)
def test_every_family_is_listed_with_one_line_each(
    family: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "list", family) == cli.DONE

    lines = capsys.readouterr().out.strip().splitlines()
    assert len(lines) >= 3
    assert all(len(line.split()) >= 3 for line in lines)  # a name and a sentence
    assert not any("see the module" in line for line in lines)  # which a user does not have open


def test_the_version_is_that_of_the_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "--version") == 0

    assert capsys.readouterr().out == f"fedsim {version('fedsim')}\n"


def test_the_schema_of_an_experiment_explains_its_keys(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "schema") == cli.DONE

    schema = json.loads(capsys.readouterr().out)
    assert schema["properties"]["rounds"]["minimum"] == 1
    training = schema["$defs"]["TrainingConfig"]["properties"]
    assert training["batch_size"]["description"] == "Examples per batch."


def test_doctor_finds_the_four_packages_side_by_side(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "doctor") == cli.DONE
    assert "side by side" in capsys.readouterr().out


@pytest.mark.slow
def test_a_gate_that_fails_ends_with_code_4_and_leaves_its_files(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("--json", "gate.json", "--junit", "gate.xml")
    how = ("--attack", "linear", "--time-budget", "5", "--workers", "1", *files)

    code = command(monkeypatch, "gate", str(tiny), "--max-psnr", "15", *how)

    assert code == cli.GATE_FAILED == 4
    assert "failed: 6 of 6 updates gave an image away" in capsys.readouterr().out
    assert json.loads(Path("gate.json").read_text())["passed"] is False
    assert 'failures="1"' in Path("gate.xml").read_text()


def test_ctrl_c_ends_with_one_message_and_its_own_code(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedsim.driver.run", interrupted)

    assert command(monkeypatch, "run", str(tiny)) == cli.INTERRUPTED
    assert "--resume" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def model(:", "SyntaxError"),
        ("def model(shape, classes, *, rng): raise KeyError('shape')", "KeyError: 'shape'"),
        ("def model(shape, classes, *, rng): return 3", "AttributeError"),
    ],
)
def test_broken_code_of_the_users_own_ends_with_one_message_and_code_2(
    tiny: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    code: str,
    said: str,
) -> None:
    (tiny.parent / "broken_own.py").write_text(code)
    sys.modules.pop("broken_own", None)
    sets = ("--set", "model.name=broken_own:model", "--set", "model.options={}")

    assert command(monkeypatch, "run", str(tiny), *sets) == cli.BAD_INPUT

    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_a_run_in_which_nothing_was_heard_says_so_at_its_end(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code = command(monkeypatch, "run", str(tiny), "--set", "adversary.rounds=[]", "--json")

    assert code == cli.DONE
    told = capsys.readouterr()
    assert "Nothing was heard, so nothing is known of what this training leaks." in told.err
    assert json.loads(told.out)["status"] == "done"


def test_an_interrupted_run_is_named_with_the_way_to_go_on(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: object, server_round: int, arrays: object) -> None:
        time.sleep(0.5)  # so that the table has been drawn once
        raise KeyboardInterrupt

    monkeypatch.setattr("server.rounds._Rounds.one", interrupted)

    assert command(monkeypatch, "run", str(tiny)) == cli.INTERRUPTED
    assert "fedsim run --resume runs/tiny-0001" in capsys.readouterr().err.replace("\n", "")


def test_a_page_that_cannot_be_written_ends_with_one_message_and_code_2(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "run", str(tiny)) == cli.DONE
    (tiny.parent / "occupied").write_text("a file, not a folder")
    run = "runs/tiny-0001"

    code = command(monkeypatch, "compare", run, run, "--output", "occupied/page.html")

    assert code == cli.BAD_INPUT
    assert "occupied" in capsys.readouterr().err
