import io
import json
import subprocess
import sys

from rich.console import Console

from fedsim.config import read_experiment
from fedsim.stages.gauge import gauge
from fedsim.tables import gauge_tables

EXPERIMENT = "digits-curious-server"
MANY = [
    "adversary.victims=all",
    "training.batch_size=2",
    "server.clients_per_round=3",
]


def test_the_gauge_says_which_attacks_apply_and_what_noise_would_do() -> None:
    found = gauge(read_experiment("digits-curious-server"), clients=2)

    applies = {one.name: one for one in found.attacks}
    assert applies["closed-form"].applies
    assert not applies["linear"].applies
    assert "no linear layer sees the input" in applies["linear"].why
    assert applies["robbing-the-fed"].why == (
        "needs 'change-weights' and 'change-architecture', which are not granted"
    )
    quality = [row.psnr_db[0] for row in found.ceilings]
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > 100  # dB: rounding alone; the closed form reaches it in the main job
    assert quality[-1] < 20  # noise as large as the update itself


def test_what_stops_an_attack_shows_without_a_run() -> None:
    found = gauge(read_experiment("digits-curious-server", ["training.batch_size=8"]), clients=1)

    applies = {one.name: one for one in found.attacks}
    assert found.num_unknowns == 8 * 64
    assert (
        "batch_size = 1" in applies["closed-form"].why or "one image" in applies["closed-form"].why
    )
    assert applies["dlg"].applies


def test_the_tables_show_every_attack_and_the_record_is_json() -> None:
    found = gauge(read_experiment("digits-curious-server"), clients=1)
    console = Console(width=100, record=True, file=None, quiet=True)

    console.print(gauge_tables(found))
    record = json.loads(json.dumps(found.record()))

    assert {one["name"] for one in record["attacks"]} == {one.name for one in found.attacks}
    assert len(record["ceilings"]) == len(found.ceilings)


def test_the_command_prints_json_when_asked() -> None:
    command = [sys.executable, "-m", "fedsim.cli", "gauge", "digits-curious-server", "--json"]

    done = subprocess.run(command, capture_output=True, text=True, check=True)

    assert json.loads(done.stdout)["experiment"] == "digits-curious-server"


def test_a_client_that_stops_after_a_few_steps_is_gauged_by_the_examples_of_these_steps() -> None:
    fedavg = ["training.algorithm=fedavg", "training.batch_size=4", "training.learning_rate=0.01"]
    limited = gauge(read_experiment(EXPERIMENT, [*fedavg, "training.max_local_steps=2"]), clients=1)
    one = gauge(read_experiment(EXPERIMENT, [*fedavg, "training.max_local_steps=1"]), clients=1)

    assert limited.obstacle == ""
    assert (limited.batch_size, limited.num_unknowns) == (8, 8 * 64)  # not the share of 100 or so
    assert one.batch_size == 4


def test_where_only_means_are_heard_all_clients_of_a_round_are_behind_one() -> None:
    alone = gauge(read_experiment(EXPERIMENT, MANY), clients=2)
    mean = gauge(
        read_experiment(EXPERIMENT, [*MANY, "adversary.threat=aggregate-server"]), clients=2
    )

    assert (alone.batch_size, alone.clients, alone.clients_per_update) == (2, 2, 1)
    assert (mean.batch_size, mean.clients, mean.clients_per_update) == (6, 2, 3)
    assert mean.num_unknowns == 3 * alone.num_unknowns
    assert mean.obstacle == ""
    # three times the unknowns in as many equations
    assert mean.ceilings[3].psnr_db[0] < alone.ceilings[3].psnr_db[0]


def test_a_mean_over_all_clients_is_the_same_in_every_round_and_gauged_once() -> None:
    everybody = [
        "adversary.victims=all",
        "adversary.threat=aggregate-server",
        "partition.clients=3",
    ]

    found = gauge(read_experiment(EXPERIMENT, everybody), clients=3)

    assert (found.clients, found.clients_per_update) == (1, 3)


def test_no_ceiling_of_a_mean_over_batches_that_were_normalised_each_on_its_own() -> None:
    normalised = [
        "model.name=resnet18",
        "model.options={ width = 4 }",
        "adversary.threat=aggregate-server",
    ]

    found = gauge(read_experiment(EXPERIMENT, [*MANY, *normalised]), clients=1)

    assert found.ceilings == ()
    assert "normalises each client's batch on its own" in found.obstacle


def test_of_text_there_is_no_ceiling_and_nobody_speaks_of_pixels() -> None:
    found = gauge(read_experiment("bert-sentences"), clients=1)

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(gauge_tables(found))
    text = console.export_text()
    assert "unknown tokens behind an update" in text
    assert "no ceiling: tokens are no numbers" in text
    assert found.record()["modality"] == "text"


def test_of_a_table_the_ceiling_is_on_rows_as_they_are_encoded() -> None:
    wine = ["data.name=wine", "adversary.public_sample=30"]
    found = gauge(read_experiment("mlp-exact", wine), clients=1)

    console = Console(width=120, record=True, file=io.StringIO())
    console.print(gauge_tables(found))
    text = " ".join(console.export_text().split())
    assert "13 unknown numbers behind an update" in text
    assert "of rows as they are encoded" in text
    assert "guessing" not in text
