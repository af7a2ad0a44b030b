"""What runs write is what the documentation promises."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from attacks.observation import LocalRecipe
from attacks.threats import CURIOUS_SERVER, UPLINK_TAP, Capability
from fedsim.config import parse_experiment
from fedsim.files import Record, read_json
from fedsim.knowledge import knowledge_record
from fedsim.records import RunDirectory
from fedsim.schemas import DOCUMENTS, schema, write_schemas
from fedsim.stages.prepare import environment

DOCS = Path(__file__).resolve().parents[2] / "docs"


def records_of(run: RunDirectory) -> Iterator[tuple[str, Record]]:
    """Every JSON record of a run, with the name of its schema."""
    for name in ("environment", "threat", "summary"):
        yield name, read_json(run.root / f"{name}.json")
    logs = {"round": run.rounds(), "event": run.events(), "score": run.scores()}
    folders = {
        "observation": run.observation_records(),
        "reconstruction": run.reconstruction_records(),
    }
    for name, records in (logs | folders).items():
        assert records
        for record in records:
            yield name, record


def test_every_record_of_a_run_fits_its_schema(finished_run: RunDirectory) -> None:
    jsonschema = pytest.importorskip("jsonschema")

    for name, record in records_of(finished_run):
        DOCUMENTS[name].model_validate(record)
        jsonschema.validate(record, schema(name))


def test_what_a_real_run_writes_at_its_start_fits_too() -> None:
    experiment = parse_experiment('name = "x"\nmodel.options = {activation = "relu"}')
    threats = (CURIOUS_SERVER, UPLINK_TAP, CURIOUS_SERVER.with_grants(frozenset(Capability)))
    for threat in threats:
        record = knowledge_record(
            experiment, threat, input_shape=(1, 8, 8), num_classes=10, recipe=LocalRecipe()
        )
        DOCUMENTS["knowledge"].model_validate(record)
    DOCUMENTS["environment"].model_validate(environment())
    DOCUMENTS["oracle"].model_validate({"labels": [3, 1]})


def test_the_documented_schemas_are_those_of_the_program(tmp_path: Path) -> None:
    write_schemas(tmp_path)

    written = {path.name: path.read_text() for path in tmp_path.iterdir()}
    documented = {path.name: path.read_text() for path in (DOCS / "schemas").iterdir()}
    assert written == documented  # else: python -m fedsim.schemas docs/schemas


def test_every_schema_is_linked_from_the_documentation() -> None:
    text = (DOCS / "run-directory.md").read_text()

    assert [name for name in DOCUMENTS if f"](schemas/{name}.json)" not in text] == []


def test_every_key_has_a_sentence() -> None:
    for name in DOCUMENTS:
        whole = schema(name)
        for part in [whole, *whole.get("$defs", {}).values()]:
            for key, value in part.get("properties", {}).items():
                assert value.get("description"), f"{name}: {key}"


def test_an_unknown_key_is_refused_but_in_events(finished_run: RunDirectory) -> None:
    for name, record in records_of(finished_run):
        if name == "event":
            DOCUMENTS[name].model_validate(record | {"client": 3})
        else:
            with pytest.raises(ValidationError):
                DOCUMENTS[name].model_validate(record | {"surprise": 1})


def test_infinity_is_in_no_record(finished_run: RunDirectory) -> None:
    score = finished_run.scores()[0]

    with pytest.raises(ValidationError):
        DOCUMENTS["score"].model_validate(score | {"matching_loss": float("inf")})
    json.dumps(score, allow_nan=False)
