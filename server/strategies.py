"""FedAvg and FedSGD in Flower's message API, and how strategies are built by name."""

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from fedsim.catalog import resolve
from fedsim.components import check_options
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.held_arrays import HeldArray, held_by
from fedsim.plain_arrays import Plain
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


class FedAvg(flower.FedAvg):
    """Flower's own, to the bit, without a copy of every update (McMahan et al., 2017).

    Args:
        settings: What Flower's takes.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"train_metrics_aggr_fn": mean_of_metrics} | settings)

    def aggregate_train(
        self,
        server_round: int,  # noqa: ARG002 - the interface is Flower's
        replies: Iterable[Message],
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Return the mean of the weights, by number of examples, and of the metrics."""
        contents = [reply.content for reply in self._check_and_log_replies(replies, True)[0]]
        if not contents:
            return None, None
        records = [_only(content, ArrayRecord) for content in contents]
        mean: dict[str, Plain] = {}
        room: dict[str, Plain] = {}
        for record, share in zip(records, _shares(contents, self.weighted_by_key), strict=True):
            for name, array in record.items():
                held = held_by(array)
                values = array.numpy() if held is None else held
                if name not in mean:
                    mean[name] = np.asarray(values * share)
                    room[name] = np.empty_like(mean[name])
                else:
                    mean[name] += np.multiply(values, share, out=room[name])
        arrays = ArrayRecord()
        for name, values in mean.items():
            arrays[name] = HeldArray.of(values)
        return arrays, self.train_metrics_aggr_fn(contents, self.weighted_by_key)


def mean_of_metrics(contents: list[RecordDict], weighted_by: str) -> MetricRecord:
    """Return the mean of every metric but the one that says how much each content counts.

    Raises:
        KeyError: A content does not say how much it counts.
        ValueError: Contents have different metrics.
    """
    records = [_only(content, MetricRecord) for content in contents]
    if len({frozenset(record) for record in records}) > 1:
        raise ValueError("clients reported different metrics, of which there is no mean")
    shares = _shares(contents, weighted_by)
    total: dict[str, float] = {}
    for record, share in zip(records, shares, strict=True):
        for name, value in record.items():
            if name != weighted_by:
                term = _number(value) * share
                total[name] = total[name] + term if name in total else term
    return MetricRecord(dict(total))


def _shares(contents: list[RecordDict], weighted_by: str) -> list[float]:
    return shares([_number(_only(content, MetricRecord)[weighted_by]) for content in contents])


def shares(counts: Sequence[float]) -> list[float]:
    """Return each count over the sum of all."""
    total = sum(counts)
    return [count / total for count in counts]


RecordKind = TypeVar("RecordKind", ArrayRecord, MetricRecord)


def _only(content: RecordDict, kind: type[RecordKind]) -> RecordKind:
    """Return the only record of its kind."""
    (found,) = (record for record in content.values() if isinstance(record, kind))
    return found


class FedSGD(flower.FedAvg):
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
        weights = shares(counts)
        state = to_tensors(self.current_arrays)
        gradient = weighted_sum(_parts(contents, ARRAYS), weights)
        velocity = to_tensors(self.velocity)
        for name, mean in gradient.items():
            step = mean + self.server_momentum * velocity[name] if name in velocity else mean
            velocity[name] = step
            state[name] = state[name] - self.learning_rate * step.to(state[name].dtype)
        if self.server_momentum:
            self.velocity = to_record(velocity)
        if BUFFERS in contents[0].array_records:
            means = weighted_sum(_parts(contents, BUFFERS), weights)
            state |= {name: mean.to(state[name].dtype) for name, mean in means.items()}
        return to_record(state), _mean_loss(contents, weights)


def _parts(contents: list[RecordDict], name: str) -> list[dict[str, Tensor]]:
    return [to_tensors(content.array_records[name], shared=True) for content in contents]


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
