"""What a round does is counted: messages, bytes, waits for a device, operations, what it keeps.

Bounds are a little above what was counted when they were set; lower them when the work gets less.
"""

import gc
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from flwr.app import Message

from fedsim.components import find
from fedsim.config import parse_experiment
from fedsim.engines import ENGINES
from fedsim.engines.in_process import InProcessGrid
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan
from tests.counted_work.counting import Counted, payload_bytes

CLIENTS, STEPS = 4, 45
"""The 1437 training examples of the digits, in batches of 8, dealt out among four."""
PARAMETERS_BYTES = 4 * (64 * 128 + 128 + 128 * 10 + 10)
"""What a message must carry: the weights of the perceptron, float32."""


@dataclass
class Work:
    """What was counted over a run.

    Attributes:
        counted: Operations of torch.
        messages: In each delivery, how many.
        sent: Bytes to clients.
        received: Bytes from clients.
        blocks: Blocks of memory that Python holds at each delivery.
    """

    counted: Counted = field(default_factory=Counted)
    messages: list[int] = field(default_factory=list)
    sent: int = 0
    received: int = 0
    blocks: list[int] = field(default_factory=list)


def run_of(rounds: int, folder: Path, algorithm: str) -> Work:
    """Train in this process, adversary at the server, and count."""
    work = Work()
    deliver = InProcessGrid.deliver

    def counting(
        grid: InProcessGrid, messages: Sequence[Message], timeout: float | None
    ) -> list[Message]:
        gc.collect()
        work.blocks.append(sys.getallocatedblocks())
        work.messages.append(len(messages))
        work.sent += sum(payload_bytes(message) for message in messages)
        replies = deliver(grid, messages, timeout)
        work.received += sum(payload_bytes(reply) for reply in replies)
        return replies

    experiment = parse_experiment(
        f"""
        name = "counted"
        rounds = {rounds}
        partition = {{ clients = {CLIENTS} }}
        data = {{ name = "digits" }}
        model = {{ name = "mlp", options = {{ hidden = [128] }} }}
        training = {{ algorithm = "{algorithm}", batch_size = 8, learning_rate = 0.1 }}
        """
    )
    run = RunDirectory.create(folder, "counted")
    write_plan(check(experiment), run)
    engine = find("engine", experiment.engine.name, ENGINES)(experiment, run)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(InProcessGrid, "deliver", counting)
        with work.counted:
            engine.train()
    engine.close()
    return work


@pytest.fixture(scope="module")
def fedavg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Work]:
    """One round of local training, and two: what is done once a run falls out of the difference."""
    one, two = (run_of(n, tmp_path_factory.mktemp("run"), "fedavg") for n in (1, 2))
    return one, two


@pytest.fixture(scope="module")
def fedsgd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Work, Work]:
    """One round of one gradient per client, and six."""
    one, six = (run_of(n, tmp_path_factory.mktemp("run"), "fedsgd") for n in (1, 6))
    return one, six


def test_a_round_takes_one_message_to_each_client_and_one_back_and_little_beside_the_weights(
    fedavg: tuple[Work, Work],
) -> None:
    one, two = fedavg

    assert two.messages == [*one.messages, CLIENTS]
    for more in (two.sent - one.sent, two.received - one.received):
        # what describes an array takes 128 bytes, and there are four
        assert CLIENTS * PARAMETERS_BYTES <= more <= CLIENTS * (PARAMETERS_BYTES + 1_024)


def test_a_step_of_training_waits_once_and_takes_few_operations(
    fedavg: tuple[Work, Work],
) -> None:
    one, two = (work.counted for work in fedavg)

    assert two.waits - one.waits <= 1.4 * CLIENTS * STEPS  # 1.24 when set
    assert two.total - one.total <= 45 * CLIENTS * STEPS  # 42.3 when set


def test_a_gradient_asked_of_each_client_takes_few_operations(
    fedsgd: tuple[Work, Work],
) -> None:
    one, six = (work.counted for work in fedsgd)

    assert six.waits - one.waits <= 14 * 5 * CLIENTS  # 12 when set
    assert six.total - one.total <= 215 * 5 * CLIENTS  # 195 when set


def test_a_round_leaves_next_to_nothing_in_memory(fedsgd: tuple[Work, Work]) -> None:
    _, six = fedsgd

    held = six.blocks[2:]
    assert held[-1] - held[0] <= 250 * (len(held) - 1)  # blocks of Python; 100 a round when set
