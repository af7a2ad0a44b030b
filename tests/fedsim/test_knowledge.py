"""What the adversary is told, item by item."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attacks.observation import Kind, LocalRecipe, Observation
from attacks.threats import CURIOUS_SERVER, Capability
from fedsim.config import Experiment, parse_experiment
from fedsim.files import Record
from fedsim.knowledge import (
    knowledge_about,
    knowledge_from,
    knowledge_record,
    read_knowledge,
    recipe_of,
    write_knowledge,
)
from fedsim.records import RunDirectory

SEEN = Observation(
    round=1,
    sender="client-0",
    receiver="server",
    kind=Kind.GRADIENT,
    update={},
    num_examples=3,
)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    """An empty run directory."""
    return RunDirectory.create(tmp_path, "tiny")


def experiment(text: str = "") -> Experiment:
    model = '[model]\nname = "mlp"\noptions = { hidden = [4] }'
    return parse_experiment(f'name = "tiny"\n{model}\n{text}')


def told(*grants: Capability) -> Record:
    """What an adversary with these grants alone is told about an experiment."""
    tiny = experiment("[training]\nbatch_size = 2")
    return knowledge_record(
        tiny,
        replace(CURIOUS_SERVER, grants=frozenset(grants)),
        input_shape=(1, 8, 8),
        num_classes=10,
        recipe=recipe_of(tiny, 1),
    )


def test_who_is_granted_nothing_is_told_nothing() -> None:
    assert told() == {}
    known = knowledge_from({})
    assert (known.model, known.input_shape, known.num_classes) == (None, None, None)
    assert (known.batch_size, known.labels, known.recipe) == (None, None, None)
    assert known.public_sample is None


@pytest.mark.parametrize(
    ("grant", "keys"),
    [
        (Capability.ARCHITECTURE, {"model", "loss", "num_classes", "input_shape"}),
        (Capability.INPUT_DOMAIN, {"input_shape", "input_range"}),
        (Capability.BATCH_SIZE, {"batch_size"}),
        (Capability.LOCAL_RECIPE, {"recipe"}),
        (Capability.LABELS, {"labels"}),
        (Capability.WEIGHTS, set()),
        (Capability.BATCHNORM_STATISTICS, set()),
        (Capability.PUBLIC_SAMPLE, set()),
    ],
)
def test_each_grant_tells_its_own_item_alone(grant: Capability, keys: set[str]) -> None:
    assert set(told(grant)) == keys


def test_what_was_told_reads_back_from_the_run(run: RunDirectory) -> None:
    sample = torch.rand(5, 1, 8, 8)

    write_knowledge(run, told(*Capability), sample)
    known = read_knowledge(run)

    assert known.model is not None
    assert known.model(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert (known.input_shape, known.input_range) == ((1, 8, 8), (0.0, 1.0))
    assert (known.num_classes, known.batch_size, known.recipe) == (
        *(10, 2),
        LocalRecipe(batch_size=2),
    )
    assert known.public_sample is not None
    assert torch.equal(known.public_sample, sample)
    assert known.labels is None  # an oracle's labels belong to one message


def test_without_the_grant_there_is_no_sample(run: RunDirectory) -> None:
    write_knowledge(run, told(), None)

    assert read_knowledge(run).public_sample is None
    assert not (run.root / "public_sample.safetensors").exists()


def test_what_is_known_of_one_message_is_its_size_and_an_oracles_labels(run: RunDirectory) -> None:
    known = knowledge_from(told(Capability.BATCH_SIZE))
    assert knowledge_about(known, run, SEEN).batch_size == 3
    assert knowledge_about(known, run, replace(SEEN, num_examples=None)).batch_size == 2
    assert knowledge_about(knowledge_from({}), run, SEEN).batch_size is None

    run.write_oracle_labels(1, "client-0", torch.tensor([1, 2, 3]))
    labels = knowledge_about(known, run, SEEN).labels
    assert labels is not None
    assert labels.tolist() == [1, 2, 3]
    assert knowledge_about(known, run, replace(SEEN, sender="client-1")).labels is None


def test_the_recipe_of_fedsgd_is_one_gradient_whatever_fedavg_would_do() -> None:
    settings = "[training]\nlocal_epochs = 3\nmomentum = 0.5\nlearning_rate = 0.2\n"

    assert recipe_of(experiment(settings), 1) == LocalRecipe(batch_size=1)
    assert recipe_of(experiment(settings + 'algorithm = "fedavg"'), 6) == LocalRecipe(
        num_steps=6, learning_rate=0.2, momentum=0.5, num_epochs=3, batch_size=1
    )


def test_each_message_has_the_steps_of_the_client_that_sent_it() -> None:
    tiny = experiment(
        '[training]\nalgorithm = "fedavg"\nbatch_size = 2\nlocal_epochs = 2\nmax_local_steps = 5'
    )
    known = knowledge_from(
        knowledge_record(
            tiny,
            CURIOUS_SERVER,
            input_shape=(1, 8, 8),
            num_classes=10,
            recipe=recipe_of(tiny, 5, proximal_mu=0.5),
            batch_size=7,
        )
    )
    run = RunDirectory(Path("nowhere"))

    steps = {
        heard: knowledge_about(known, run, replace(SEEN, num_examples=heard)).recipe
        for heard in (3, 4, 7, None)
    }

    assert {heard: recipe and recipe.num_steps for heard, recipe in steps.items()} == {
        3: 4,  # two batches, twice
        4: 4,
        7: 5,  # max_local_steps
        None: 5,  # the most of any client
    }
    assert known.recipe is not None
    assert (known.recipe.batch_size, known.recipe.max_steps) == (2, 5)
    assert known.recipe.proximal_mu == 0.5
    assert known.batch_size == 7
