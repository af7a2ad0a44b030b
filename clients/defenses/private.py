"""What the defenses with differential privacy have in common."""

import math

from torch import nn

from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.wire import shared_buffers


def refuse_tellers(name: str, experiment: Experiment, model: nn.Module) -> None:
    """Refuse what would leave a client beside its update, and tell of its data.

    Args:
        name: Of the defense, for messages.
        experiment: As read.
        model: What everybody trains.

    Raises:
        ConfigError: Running statistics, evaluations or losses would be sent.
    """
    if buffers := sorted(shared_buffers(model)):
        raise ConfigError(
            f"{name} does not defend running statistics, which model '{experiment.model.name}' "
            f"sends beside its update ('{buffers[0]}'); choose a model without batch normalisation"
        )
    if experiment.server.evaluate_clients:
        raise ConfigError(
            f"{name} does not defend the accuracy that clients measure on their own data; set "
            "server.evaluate_clients = false"
        )
    if experiment.server.strategy == "qfedavg":
        raise ConfigError(
            f"{name} does not defend the losses that server.strategy 'qfedavg' needs; choose "
            "another strategy"
        )


def summed_steps(num_steps: int, momentum: float) -> float:
    """Return how far unit noise in each step of SGD takes the weights, per learning rate.

    With momentum, the noise of a step goes on in all that follow.
    """
    reach = 0.0
    total = 0.0
    for _ in range(num_steps):
        reach = 1.0 + momentum * reach
        total += reach * reach
    return math.sqrt(total)
