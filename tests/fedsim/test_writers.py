"""What TensorBoard and MLflow are told, read back from their own files."""

import builtins
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fedsim.errors import ConfigError
from fedsim.files import read_json
from fedsim.records import RunDirectory
from fedsim.writers import of_round, of_score, of_summary, open_writers
from tests.fedsim.conftest import MadeRun, Make
from tests.fedsim.told import table_run, text_run


@pytest.fixture
def pictured_run(finished_run: RunDirectory) -> RunDirectory:
    """A finished run with one picture."""
    finished_run.pictures.mkdir()
    Image.new("RGB", (5, 4), "red").save(finished_run.pictures / "gallery.png")
    return finished_run


def write_all(name: str, run: RunDirectory) -> None:
    """Tell one writer of everything that a run recorded."""
    (writer,) = open_writers([name], run)
    for record in run.rounds():
        writer.round(record)
    for score in run.scores():
        writer.score(score)
    writer.close(read_json(run.summary))


def test_nothing_is_opened_when_nothing_is_asked_for(finished_run: RunDirectory) -> None:
    assert open_writers([], finished_run) == []


def test_tensorboard_shows_the_rounds_the_scores_and_the_pictures(
    pictured_run: RunDirectory,
) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    write_all("tensorboard", pictured_run)

    events = reading.EventAccumulator(str(pictured_run.root / "tensorboard"))
    events.Reload()
    accuracy = [(one.step, one.value) for one in events.Scalars("utility/accuracy")]
    recorded = [(one["round"], one["accuracy"]) for one in pictured_run.rounds()]
    assert accuracy == [(step, pytest.approx(value)) for step, value in recorded]
    assert [one.step for one in events.Scalars("psnr_db/dlg/client-1")] == [1, 2, 3]
    assert events.Images("pictures/gallery")[0].width == 5
    (final,) = events.Scalars("summary/dlg/psnr_db_median")
    row = next(row for row in read_json(pictured_run.summary)["leakage"] if row["attack"] == "dlg")
    assert final.value == pytest.approx(row["psnr_db"]["median"])


def test_mlflow_shows_the_same_without_a_server(pictured_run: RunDirectory) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    write_all("mlflow", pictured_run)

    store = pictured_run.root / "mlflow"
    client = MlflowClient(tracking_uri=f"sqlite:///{store / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("fedsim")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    history = client.get_metric_history(run.info.run_id, "psnr_db/dlg/client-0")
    assert [one.step for one in history] == [1, 2, 3]
    assert run.info.status == "FINISHED"
    assert run.data.params["training.batch_size"] == "2"
    assert "output.directory" not in run.data.params
    assert (store / "artifacts" / run.info.run_id / "artifacts/pictures/gallery.png").is_file()


def test_a_resumed_run_goes_on_in_its_own_mlflow_record(pictured_run: RunDirectory) -> None:
    pytest.importorskip("mlflow")

    write_all("mlflow", pictured_run)
    write_all("mlflow", pictured_run)

    with sqlite3.connect(pictured_run.root / "mlflow" / "mlflow.db") as store:
        assert store.execute("SELECT count(*) FROM runs").fetchone() == (1,)


@pytest.mark.parametrize("name", ["tensorboard", "mlflow"])
def test_a_missing_package_is_an_error_that_names_the_extra(
    name: str, finished_run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    import_module = builtins.__import__

    def without(
        module: str,
        names: Mapping[str, object] | None = None,
        local: Mapping[str, object] | None = None,
        wanted: Sequence[str] = (),
        level: int = 0,
    ) -> Any:
        if module.startswith(("torch.utils.tensorboard", "mlflow")):
            raise ImportError(module)
        return import_module(module, names, local, wanted, level)

    monkeypatch.setattr(builtins, "__import__", without)

    with pytest.raises(ConfigError, match=rf"pip install 'fedsim\[{name}\]'"):
        open_writers([name], finished_run)


def test_what_was_not_measured_has_no_value() -> None:
    assert of_round({"round": 0, "accuracy": None, "loss": 2.5}) == {"utility/loss": 2.5}


def test_a_failed_attack_shows_its_rate_of_zero_and_no_psnr(make_run: Make) -> None:
    run = make_run(MadeRun(rounds=1, victims=(0,), failing=(1,), attacks=("dlg",)))

    scalars = of_score(run.scores()[0])

    assert scalars["success_rate/dlg/client-0"] == 0.0
    assert "psnr_db/dlg/client-0" not in scalars
    assert "psnr_db/data mean (baseline)/client-0" in scalars
    assert of_summary(read_json(run.summary))["summary/dlg/failed"] == 1.0


def test_consensus_peers_and_their_traffic_are_curves_where_there_is_no_server(
    made_among_peers: RunDirectory,
) -> None:
    last = made_among_peers.rounds()[-1]

    curves = of_round(last)

    assert curves["utility/consensus_distance"] == last["consensus_distance"]
    assert curves["utility/worst_peer"] == min(last["peer_accuracy"])
    assert curves["utility/best_peer"] == max(last["peer_accuracy"])
    assert curves["traffic/bytes_between"] == 9000
    assert curves["traffic/messages"] == 18
    final = of_summary(read_json(made_among_peers.summary))
    assert final["summary/dlg/distance 1/psnr_db_median"] > 0
    assert "summary/dlg/distance 3/psnr_db_median" not in final  # nothing was got there


def test_of_texts_and_rows_the_share_that_is_right_is_a_curve(tmp_path: Path) -> None:
    for run, measures in (
        (text_run(tmp_path), ("accuracy", "rouge1", "rouge_l")),
        (table_run(tmp_path), ("accuracy",)),
    ):
        scalars = of_score(run.scores()[0])
        summed_up = of_summary(read_json(run.summary))

        assert {f"{name}/dlg/client-0" for name in measures} <= set(scalars)
        assert scalars["accuracy/data mean (baseline)/client-0"] == 0.25
        assert not [tag for tag in {*scalars, *summed_up} if "psnr" in tag or "ssim" in tag]
        assert summed_up["summary/dlg/baseline_accuracy"] == 0.25
        assert summed_up["summary/dlg/exact"] == 0.25
        assert summed_up["summary/dlg/accuracy_median"] > 0.5
