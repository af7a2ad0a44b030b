"""FedSGD in Flower's message API, and how strategies are built by name."""

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg, Strategy
from torch import Tensor

from fedsim.catalog import resolve
from fedsim.components import check_options
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.wire import (
    ARRAYS,
    BUFFERS,
    CONFIG,
    METRICS,
    NUM_EXAMPLES,
    TRAIN_LOSS,
    to_record,
    to_tensors,
)
from server import STRATEGIES


class FedSGD(FedAvg):
    """One step along the clients' mean gradient (McMahan et al., 2017, arXiv 1602.05629).

    The mean is weighted by the number of examples and summed in float64 in the order of the
    replies, so that the same replies in the same order give the same bits. Running statistics
    that clients send beside their gradients are averaged with the same weights.

    Args:
        learning_rate: Step size.
        server_momentum: Momentum of the step; 0 is plain SGD.
        sampling: What `FedAvg` takes, such as `fraction_evaluate`.
    """

    wants_gradients = True

    def __init__(
        self, learning_rate: float = 0.1, server_momentum: float = 0.0, **sampling: Any
    ) -> None:
        if learning_rate <= 0:
            raise ConfigError(f"fedsgd: learning_rate must be greater than 0, got {learning_rate}")
        if not 0 <= server_momentum < 1:
            raise ConfigError(f"fedsgd: server_momentum must be in [0, 1), got {server_momentum}")
        super().__init__(**sampling)
        self.learning_rate = learning_rate
        self.server_momentum = server_momentum
        self.current_arrays = ArrayRecord()
        self.velocity = ArrayRecord()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Send the weights, and remember them for the step."""
        self.current_arrays = arrays
        return super().configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 - the interface is Flower's
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Take one step along the weighted mean of the gradients."""
        contents = [reply.content for reply in replies if reply.has_content()]
        if not contents:
            return None, None
        counts = [_number(content.metric_records[METRICS][NUM_EXAMPLES]) for content in contents]
        shares = [count / sum(counts) for count in counts]
        state = to_tensors(self.current_arrays)
        gradient = weighted_sum([to_tensors(c.array_records[ARRAYS]) for c in contents], shares)
        velocity = to_tensors(self.velocity)
        for name, mean in gradient.items():
            step = mean + self.server_momentum * velocity[name] if name in velocity else mean
            velocity[name] = step
            state[name] = state[name] - self.learning_rate * step.to(state[name].dtype)
        if self.server_momentum:
            self.velocity = to_record(velocity)
        if BUFFERS in contents[0].array_records:
            means = weighted_sum([to_tensors(c.array_records[BUFFERS]) for c in contents], shares)
            state |= {name: mean.to(state[name].dtype) for name, mean in means.items()}
        return to_record(state), _mean_loss(contents, shares)


def _mean_loss(contents: list[RecordDict], shares: list[float]) -> MetricRecord:
    """Return the mean of the losses that clients report, if they do."""
    metrics = [content.metric_records[METRICS] for content in contents]
    if not all(TRAIN_LOSS in record for record in metrics):
        return MetricRecord()
    losses = [_number(record[TRAIN_LOSS]) for record in metrics]
    loss = sum(share * value for share, value in zip(shares, losses, strict=True))
    return MetricRecord({TRAIN_LOSS: loss})


def weighted_sum(parts: list[dict[str, Tensor]], weights: list[float]) -> dict[str, Tensor]:
    """Return the weighted sum of named tensors, in float64, added in the order given."""
    total: dict[str, Tensor] = {}
    for part, weight in zip(parts, weights, strict=True):
        for name, tensor in part.items():
            term = weight * tensor.to(torch.float64)
            total[name] = total[name] + term if name in total else term
    return total


def _number(value: object) -> float:
    if not isinstance(value, int | float):
        raise TypeError(f"expected a number, got {value!r}")
    return float(value)


def build_strategy(experiment: Experiment) -> Strategy:
    """Return the strategy that the experiment names.

    Options are what its constructor names. Sampling is not among them: a strategy is shown only
    the nodes drawn for the round, and takes all.

    Raises:
        ConfigError: There is no such strategy, or it does not take these options.
    """
    name = experiment.server.strategy or experiment.training.algorithm
    factory = resolve(name, STRATEGIES, "strategy")
    if getattr(factory, "wants_gradients", False) and experiment.training.algorithm != "fedsgd":
        raise ConfigError(
            f"server.strategy '{name}' needs gradients; set training.algorithm = 'fedsgd'"
        )
    given = _given(factory, experiment)
    options = check_options(
        "server.options", factory, experiment.server.options, taken=frozenset(given)
    )
    try:
        strategy: Strategy = factory(**given, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"server.options: strategy '{name}' refused them: {error}") from error
    if not isinstance(strategy, Strategy):
        raise ConfigError(
            f"server.strategy '{name}' made {type(strategy).__name__}, not a Flower Strategy"
        )
    return strategy


def _given(factory: Callable[..., Any], experiment: Experiment) -> dict[str, Any]:
    """Return the arguments of `factory` that are not the user's to set."""
    common = {  # what every strategy of Flower's takes, be it behind `**kwargs`
        "fraction_train": 1.0,
        "fraction_evaluate": 1.0,  # the loop asks clients to evaluate, or does not
        "min_train_nodes": 1,
        "min_evaluate_nodes": 1,
        "min_available_nodes": 1,
        "weighted_by_key": NUM_EXAMPLES,
        "arrayrecord_key": ARRAYS,
        "configrecord_key": CONFIG,
    }
    own = {
        "client_learning_rate": experiment.training.learning_rate,
        "train_loss_key": TRAIN_LOSS,
    }
    if getattr(factory, "wants_gradients", False):
        own["learning_rate"] = experiment.training.learning_rate
    parameters = inspect.signature(factory).parameters
    if any(one.kind is one.VAR_KEYWORD for one in parameters.values()):
        return common | {name: value for name, value in own.items() if name in parameters}
    return {name: value for name, value in (common | own).items() if name in parameters}
