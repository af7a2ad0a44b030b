"""What the engines are timed on: noise for data, three models, and a strategy with a clock.

The strategy is Flower's FedAvg; when it is asked for the messages of a round it notes what CPU all
processes of the run have used, and in between runs the same steps of SGD in a plain loop. So both
are timed in turn, in one run, whatever plays the clients.
"""

import functools
import json
from collections import OrderedDict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from flwr.app import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from torch import Tensor, nn

from benchmarks import bare
from benchmarks.bare import BATCH, CLIENTS, RATE, STEPS, Meter, sgd
from fedsim.data.images import ImageData
from fedsim.models.lenet import dlg_lenet
from server.strategies import FedAvg

SHAPE = (3, 32, 32)
CLASSES = 10
MODELS = ("lenet", "mlp", "cnn")


def noise(
    *, examples: int = CLIENTS * STEPS * BATCH, side: int = 32, channels: int = 3
) -> ImageData:
    """Return random pictures with random classes; the same each time."""
    rng = torch.Generator().manual_seed(0)
    inputs = torch.rand(examples, channels, side, side, generator=rng)
    labels = torch.arange(examples) % CLASSES
    names = tuple(str(number) for number in range(CLASSES))
    return ImageData(
        name="noise",
        train_inputs=inputs,
        train_labels=labels,
        test_inputs=inputs[:100],
        test_labels=labels[:100],
        class_names=names,
    )


def lenet(
    input_shape: tuple[int, int, int], num_classes: int, *, rng: torch.Generator
) -> nn.Module:
    """The LeNet of DLG for ten classes: 15,826 parameters."""
    return dlg_lenet(input_shape, num_classes, rng=rng)


def mlp(input_shape: tuple[int, int, int], num_classes: int, *, rng: torch.Generator) -> nn.Module:
    """One hidden layer of 64: 197,322 parameters."""
    inputs = input_shape[0] * input_shape[1] * input_shape[2]
    return _drawn(
        rng, flatten=nn.Flatten(), hidden=nn.Linear(inputs, 64), relu=nn.ReLU(),
        linear=nn.Linear(64, num_classes),
    )  # fmt: skip


def cnn(input_shape: tuple[int, int, int], num_classes: int, *, rng: torch.Generator) -> nn.Module:
    """Two convolutions and a dense layer of 128, as in pfl-research's benchmark: 1,626,442."""
    side = (input_shape[1] - 4) // 2
    return _drawn(
        rng, conv1=nn.Conv2d(input_shape[0], 32, 3), relu1=nn.ReLU(), conv2=nn.Conv2d(32, 64, 3),
        relu2=nn.ReLU(), pool=nn.MaxPool2d(2), flatten=nn.Flatten(),
        dense=nn.Linear(64 * side * side, 128), relu3=nn.ReLU(), linear=nn.Linear(128, num_classes),
    )  # fmt: skip


FACTORIES = {"lenet": lenet, "mlp": mlp, "cnn": cnn}


def _drawn(rng: torch.Generator, **layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential(OrderedDict(layers))
    with torch.no_grad():
        for parameter in model.parameters():
            bound = 1 / max(1, parameter[0].numel()) ** 0.5
            parameter.uniform_(-bound, bound, generator=rng)
    return model


@functools.cache
def model_of(name: str) -> nn.Module:
    """Return one model for all clients of this process."""
    return FACTORIES[name](SHAPE, CLASSES, rng=torch.Generator().manual_seed(0))


@functools.cache
def _noise() -> ImageData:
    return noise()


@functools.cache
def data_of(client: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of one client."""
    data, each = _noise(), STEPS * BATCH
    part = slice(client * each, (client + 1) * each)
    return data.train_inputs[part], data.train_labels[part]


def bare_round(name: str) -> float:
    """Return the CPU seconds of the steps of all clients in a plain loop, and of nothing else."""
    return bare.bare_round(model_of(name), [data_of(client) for client in range(CLIENTS)])


class _Clock(flower.FedAvg):
    """Notes, each time a round begins, what the one before it cost.

    Args:
        clock: A file that gets one line per round: CPU and wall seconds of the round, and CPU
            seconds of the plain loop run before it.
        bare: The model of the plain loop; empty means to run none.
        root: The process whose descendants count; 0 means this process alone.
        settings: What FedAvg takes.
    """

    def __init__(self, *, clock: str, bare: str = "", root: int = 0, **settings: object) -> None:
        super().__init__(**settings)  # type: ignore[arg-type]
        self.clock = Path(clock)
        self.bare = bare
        self.root = root
        self.begun: tuple[Meter, float] | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Note what the last round cost, and run the plain loop before this one."""
        if self.begun is not None:
            meter, plain = self.begun
            wall, cpu, own = meter.read()
            line = {"cpu_s": cpu, "wall_s": wall, "server_cpu_s": own, "bare_cpu_s": plain}
            with self.clock.open("a") as file:
                file.write(json.dumps(line) + "\n")
        plain = bare_round(self.bare) if self.bare else 0.0
        self.begun = (Meter(self.root), plain)
        return super().configure_train(server_round, arrays, config, grid)


class Clocked(_Clock, FedAvg):
    """Our FedAvg with a clock."""


class ClockedFlower(_Clock):
    """Flower's FedAvg with a clock."""


# what a user of Flower would write, by its tutorial for PyTorch

flower_app = ClientApp()


@flower_app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this client's data, as in Flower's tutorial."""
    model = model_of(str(message.content.config_records["config"]["model"]))
    model.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
    number = context.node_config["partition-id"]
    assert isinstance(number, int)
    inputs, labels = data_of(number)
    loss = sgd(model, torch.optim.SGD(model.parameters(), lr=RATE), inputs, labels)
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"train_loss": loss, "num-examples": len(inputs)}),
        }
    )
    return Message(content, reply_to=message)


echo_app = ClientApp()


@echo_app.train()
def echo(message: Message, context: Context) -> Message:  # noqa: ARG001
    """Return the arrays as they came."""
    content = RecordDict(
        {
            "arrays": message.content.array_records["arrays"],
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )
    return Message(content, reply_to=message)


def payload(size: int) -> ArrayRecord:
    """Return one array of so many bytes."""
    return ArrayRecord({"w": Array(np.zeros(size // 4, dtype=np.float32))})
