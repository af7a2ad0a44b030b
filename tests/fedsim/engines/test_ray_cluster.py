"""A cluster of several nodes: work is spread over them, and outlives the loss of one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.slow
def test_a_run_on_three_nodes_one_of_which_is_lost_has_the_bits_of_one_machine(
    tmp_path: Path,
) -> None:
    output = tmp_path / "cluster.json"

    subprocess.run(
        [sys.executable, "-m", "benchmarks.cluster", "--lose-only", "--output", str(output)],
        cwd=ROOT,
        check=True,
        timeout=600,
        capture_output=True,
    )

    [found] = json.loads(output.read_text())["rows"]
    assert len(set(found["clients_on"])) == 2
    assert len(set(found["attacks_on"])) == 2
    [lost] = found["lost"]
    assert lost in found["clients_on"]
    assert lost != found["driver"]
    assert "worker-replaced" in found["events"]
    assert set(found["events"]) <= {"worker-replaced", "attack-taken-up-again"}
    assert found["reconstructions"] > 0
    assert found["same"] == dict.fromkeys(found["same"], True)
