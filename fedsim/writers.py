"""Curves for tools that people already look at: TensorBoard and MLflow, both extras.

Both are told what the run directory records, while it is recorded, and nothing else; both stay
local, below the run directory. Tags read `utility/accuracy`, `psnr_db/ATTACK/VICTIM` (the median
over the victim's images; of texts and rows `accuracy`) and `summary/ATTACK/...`; the step is the
round.
"""

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Protocol

import numpy as np
from PIL import Image

from fedsim.errors import ConfigError
from fedsim.files import Record
from fedsim.quality import baseline_values, examples, modality_of, scale_of
from fedsim.records import RunDirectory
from fedsim.report.reading import settings
from fedsim.schemas.document import Modality

Scalars = dict[str, float]
"""Values by tag."""


class Writer(Protocol):
    """Is told of everything as it is recorded."""

    def round(self, record: Record) -> None:
        """Write one round."""

    def score(self, record: Record) -> None:
        """Write the score of one reconstruction."""

    def close(self, summary: Record) -> None:
        """Write what came out, with the pictures, and let go of all files."""


def open_writers(names: Sequence[str], run: RunDirectory) -> list[Writer]:
    """Return the writers of these names, writing below the run directory.

    Raises:
        ConfigError: A writer's package is not installed.
    """
    return [WRITERS[name](run) for name in names]


class TensorBoardWriter:
    """Writes event files to `tensorboard/`.

    TensorBoard itself puts the machine's name into the name of each file.
    """

    def __init__(self, run: RunDirectory) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _not_installed("tensorboard") from error
        self.run = run
        self.log = SummaryWriter(str(run.root / "tensorboard"))

    def round(self, record: Record) -> None:
        """Write one round."""
        self._write(of_round(record), record["round"])

    def score(self, record: Record) -> None:
        """Write the score of one reconstruction."""
        self._write(of_score(record), record["round"])

    def close(self, summary: Record) -> None:
        """Write what came out, with the pictures, and close the files."""
        self._write(of_summary(summary), summary["rounds"])
        for path in sorted(self.run.pictures.glob("*.png")):
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            self.log.add_image(
                f"pictures/{path.stem}", pixels, summary["rounds"], dataformats="HWC"
            )
        self.log.close()

    def _write(self, scalars: Scalars, step: int) -> None:
        for tag, value in scalars.items():
            self.log.add_scalar(tag, value, step)


class MlflowWriter:
    """Writes to an SQLite store in `mlflow/`, with pictures beside it; needs no server.

    Look at it with `mlflow ui --backend-store-uri sqlite:///RUN/mlflow/mlflow.db`. The store
    remembers where its pictures lie, so they are not found after the run directory was moved.
    """

    def __init__(self, run: RunDirectory) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read when it is imported
        try:
            from mlflow.entities import Metric, Param, RunTag
            from mlflow.tracking import MlflowClient
        except ImportError as error:
            raise _not_installed("mlflow") from error
        logging.getLogger("mlflow.store").setLevel(logging.WARNING)  # it announces its tables
        self.run = run
        self.entity = Metric
        folder = run.root.resolve() / "mlflow"
        folder.mkdir(exist_ok=True)
        self.client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        known = self.client.get_experiment_by_name("fedsim")
        if known is None:
            experiment = self.client.create_experiment(
                "fedsim", artifact_location=(folder / "artifacts").as_uri()
            )
            self.id = self.client.create_run(experiment, run_name=run.name).info.run_id
            values = [Param(_name(key), str(value)) for key, value in settings(run).items()]
            self.client.log_batch(self.id, params=values, tags=[RunTag("run", run.name)])
        else:  # a resumed run goes on in its own record
            self.id = self.client.search_runs([known.experiment_id])[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")

    def round(self, record: Record) -> None:
        """Write one round."""
        self._write(of_round(record), record["round"])

    def score(self, record: Record) -> None:
        """Write the score of one reconstruction."""
        self._write(of_score(record), record["round"])

    def close(self, summary: Record) -> None:
        """Write what came out, with the pictures, and how the run ended."""
        self._write(of_summary(summary), summary["rounds"])
        for path in sorted(self.run.pictures.glob("*.png")):
            self.client.log_artifact(self.id, str(path), "pictures")
        ended = {"done": "FINISHED", "interrupted": "KILLED", "failed": "FAILED"}
        self.client.set_terminated(self.id, status=ended[summary["status"]])

    def _write(self, scalars: Scalars, step: int) -> None:
        values = [self.entity(_name(tag), value, 0, step) for tag, value in scalars.items()]
        self.client.log_batch(self.id, metrics=values)


WRITERS: Mapping[str, type[TensorBoardWriter] | type[MlflowWriter]] = {
    "tensorboard": TensorBoardWriter,
    "mlflow": MlflowWriter,
}
"""By the name that experiments and extras use."""
MEASURES: Mapping[Modality, Sequence[str]] = {
    "image": ("psnr_db", "ssim"),
    "text": ("accuracy", "rouge1", "rouge_l"),
    "table": ("accuracy",),
}
"""Of private examples, as records call them; there is a baseline of the first."""
BASELINES = ("baseline_psnr_db", "baseline_accuracy")


def of_round(record: Record) -> Scalars:
    """Return the curves of one round; what was not measured is left out."""
    keys = ("accuracy", "loss", "train_loss", "client_accuracy", "client_loss")
    values = {f"utility/{key}": record.get(key) for key in (*keys, "consensus_distance")}
    peers = [value for value in record.get("peer_accuracy", []) if value is not None]
    if peers:
        values |= {"utility/worst_peer": min(peers), "utility/best_peer": max(peers)}
    traffic = ("bytes_up", "bytes_down", "bytes_between", "messages", "rejected")
    values |= {f"traffic/{key}": record.get(key) for key in traffic}
    return _known(values)


def of_score(score: Record) -> Scalars:
    """Return the curves of one score: medians over the victim's examples, and a baseline."""
    where = f"{score['attack']}/{score['victim']}"
    measures = MEASURES[modality_of(score)]
    values: dict[str, float | None] = {
        f"{metric}/{where}": _median(one[metric] for one in examples(score)) for metric in measures
    }
    for key in ("label_accuracy", "success_rate", "matching_loss"):
        values[f"{key}/{where}"] = score[key]
    baseline = f"{measures[0]}/data mean (baseline)/{score['victim']}"
    values[baseline] = _median(baseline_values(score))
    return _known(values)


def of_summary(summary: Record) -> Scalars:
    """Return one value per attack and metric, to compare runs by."""
    values: dict[str, float | None] = {}
    for row in summary["leakage"]:
        where = f"summary/{row['attack']}"
        for metric in MEASURES[modality_of(row)]:
            values[f"{where}/{metric}_median"] = row[metric] and row[metric]["median"]
        for key in ("success_rate", "label_accuracy", *BASELINES, "exact", "failed"):
            values[f"{where}/{key}"] = row.get(key)
    for row in (summary.get("peers") or {}).get("by_distance", []):
        away = "out of reach" if row["distance"] is None else row["distance"]
        where = f"summary/{row['attack']}/distance {away}"
        metric = scale_of(row).field
        values[f"{where}/{metric}_median"] = row[metric] and row[metric]["median"]
    return _known(values)


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def _known(values: Mapping[str, float | None]) -> Scalars:
    return {tag: float(value) for tag, value in values.items() if value is not None}


def _name(tag: str) -> str:
    return re.sub(r"[^\w./ -]", "_", tag)  # what MLflow allows


def _not_installed(name: str) -> ConfigError:
    return ConfigError(
        f"output.writers: '{name}' needs a package that is not installed; "
        f"pip install 'fedsim[{name}]'"
    )
