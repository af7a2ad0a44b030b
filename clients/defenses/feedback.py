"""Error feedback: what compression took off an update is added to the next one.

Seide et al. (2014, 1-bit SGD) and Karimireddy et al. (2019, https://arxiv.org/abs/1901.09847): a
client keeps what it did not send, adds it to its next update, and compresses the sum. Nothing is
lost for good, only late; biased compression then trains as plain SGD does.
"""

import math
from collections.abc import Callable

from torch import Tensor

from attacks.observation import Observation, Tensors
from fedsim.defenses import Situation

Compress = Callable[[Tensors], dict[str, Tensor]]


def with_feedback(update: Tensors, at: Situation, compress: Compress) -> dict[str, Tensor]:
    """Return the compressed sum of this update and what earlier ones lost; remember the new loss.

    Args:
        update: What the client computed.
        at: Its memory holds the losses, by parameter name.
        compress: Must lose less than what it is given is long, or losses grow without bound.
    """
    whole = {
        name: tensor + at.memory[name].to(tensor) if name in at.memory else tensor
        for name, tensor in update.items()
    }
    sent = compress(whole)
    for name, tensor in whole.items():
        at.memory[name] = tensor - sent[name]
    return sent


def carried(seen: Observation) -> float:
    """Return by how much error feedback widens the error of one message.

    What is heard is the update, plus what the message before lost, minus what this one lost: twice
    the variance. Nothing was lost before the first round.
    """
    return 1.0 if seen.round == 1 else math.sqrt(2)


def mixed_deviation(heard: Tensor, num_rounds: float, momentum: float = 0.0) -> float:
    """Estimate how far a coordinate that waited is from what the last round alone added to it.

    It is the sum of all rounds since it was last sent, each with the momentum that it gathered
    since. If rounds are alike and independent, the last one has a share in its variance that the
    number of rounds gives.

    Args:
        heard: What was sent of a parameter, zeros left out, flat.
        num_rounds: How many rounds a coordinate waits, on average.
        momentum: Of the sum.
    """
    if not heard.numel():
        return 0.0
    waited = range(max(1, round(num_rounds)))
    weights = [sum(momentum**power for power in range(age + 1)) for age in waited]
    others = 1 - 1 / sum(weight**2 for weight in weights)
    return float(heard.double().square().mean().sqrt()) * math.sqrt(others)
