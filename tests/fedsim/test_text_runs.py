"""Runs on text and tables from end to end: the same loop as for images."""

from pathlib import Path

import pytest

from fedsim.config import parse_experiment
from fedsim.driver import run
from fedsim.records import RunDirectory

TEXT = """
name = "text"
rounds = 1
partition = { clients = 4 }
data = { name = "python-docs", options = { limit = 120, length = 12, vocabulary_size = 400 } }
model = { name = "bert", options = { layers = 2, width = 64 } }
training = { algorithm = "fedsgd", batch_size = 1, learning_rate = 0.1 }
"""
SERVER = """
adversary = { threat = "curious-server", victims = [0] }
attacks = [{ name = "dager" }]
"""
PEERS = """
topology = { name = "ring" }
protocol = { name = "d-psgd" }
adversary = { threat = "curious-neighbour", victims = [1] }
attacks = [{ name = "dager" }]
"""
DEFENDED = """
defenses = [{ name = "gaussian-noise", options = { scale = 0.05 } }]
adversary = { threat = "curious-server", victims = [0], grants = ["defense"] }
attacks = [{ name = "adaptive", time_budget_s = 8 }]
"""
TABLE = """
name = "table"
rounds = 1
partition = { clients = 4 }
data = { name = "wine" }
model = { name = "mlp", options = { hidden = [40] } }
training = { algorithm = "fedsgd", batch_size = 2, learning_rate = 0.1 }
adversary = { threat = "curious-server", victims = [0], public_sample = 30 }
attacks = [{ name = "auto", time_budget_s = 20 }]
"""


def scores_of(text: str, folder: Path) -> list[dict[str, object]]:
    experiment = parse_experiment(text + f'output = {{ directory = "{folder}" }}\n')
    result = run(experiment)
    assert result.summary["status"] == "done"
    assert (result.directory / "report.html").is_file()
    return RunDirectory.open(result.directory).scores()


@pytest.mark.slow
@pytest.mark.parametrize("where", [SERVER, PEERS], ids=["server", "peers"])
def test_a_sentence_is_read_at_the_server_and_among_peers(where: str, tmp_path: Path) -> None:
    (score,) = scores_of(TEXT + where, tmp_path)

    assert score["modality"] == "text"
    assert (score["success_rate"], score["certified"]) == (1.0, 1)


@pytest.mark.slow
def test_a_defense_of_updates_defends_text_too(tmp_path: Path) -> None:
    (score,) = scores_of(TEXT + DEFENDED, tmp_path)

    assert score["defense"] == "gaussian-noise"
    assert score["success_rate"] == 0.0


@pytest.mark.slow
def test_rows_of_a_table_are_read_at_the_server(tmp_path: Path) -> None:
    (score,) = scores_of(TABLE, tmp_path)

    assert (score["modality"], score["success_rate"]) == ("table", 1.0)
