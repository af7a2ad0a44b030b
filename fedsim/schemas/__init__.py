"""What every JSON record of a run directory holds: the contract with other programs.

`docs/schemas/*.json` are made from these models, by `python -m fedsim.schemas docs/schemas`.
A later version of the same format may add keys; it never removes one or changes its meaning.
"""

import json
from pathlib import Path
from typing import Any

from fedsim.files import replace_bytes
from fedsim.schemas.adversary import KnowledgeRecord, OracleLabels, Threat
from fedsim.schemas.course import Alarms, Environment, Event, Round
from fedsim.schemas.data import DataRecord
from fedsim.schemas.document import Document
from fedsim.schemas.gate import GateRecord
from fedsim.schemas.observations import ObservationRecord, ProgressRecord, ReconstructionRecord
from fedsim.schemas.scores import Score
from fedsim.schemas.summary import Summary
from fedsim.schemas.sweep import SweepRecord
from fedsim.schemas.topology import TopologyRecord
from fedsim.schemas.traffic import HeardUpTo, TrafficBurst
from fedsim.schemas.views import ViewRecord

DOCUMENTS: dict[str, type[Document]] = {
    "environment": Environment,
    "threat": Threat,
    "knowledge": KnowledgeRecord,
    "oracle": OracleLabels,
    "data": DataRecord,
    "topology": TopologyRecord,
    "alarms": Alarms,
    "round": Round,
    "event": Event,
    "view": ViewRecord,
    "observation": ObservationRecord,
    "traffic": TrafficBurst,
    "heard": HeardUpTo,
    "reconstruction": ReconstructionRecord,
    "progress": ProgressRecord,
    "score": Score,
    "summary": Summary,
    "sweep": SweepRecord,
    "gate": GateRecord,
}
"""Every kind of record, by the name of its schema file."""


def schema(name: str) -> dict[str, Any]:
    """Return the JSON schema of one kind of record."""
    return {"$id": f"{name}.json", **DOCUMENTS[name].model_json_schema()}


def write_schemas(folder: Path) -> None:
    """Write `NAME.json` for every kind of record."""
    for name in DOCUMENTS:
        replace_bytes(folder / f"{name}.json", (json.dumps(schema(name), indent=2) + "\n").encode())
