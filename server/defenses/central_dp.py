"""Central differential privacy: the server clips updates, and adds noise to their mean.

DP-FedAvg (McMahan et al., 2018, https://arxiv.org/abs/1710.06963), with clipping that follows the
lengths of updates as an option (Andrew et al., 2021, https://arxiv.org/abs/1905.03871).

What is released is the model. The server itself, and whoever hears a link, gets the updates as
they are: this defense hides clients from those who are given the model, and from nobody else.

Flower has strategies for it, with the same conventions; with fixed clipping, equal numbers of
examples and plain averaging, ours is theirs. We differ where an account would not be true or a run
not repeatable: all clients count alike, the noise is for as many as answered, the strategy's own
memory (momentum) is fed with the noisy mean alone, and noise comes from streams named by round.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor, nn

from attacks.defense import length_of
from attacks.observation import Knowledge, Observation, Tensors
from fedsim.config import Experiment
from fedsim.defenses import Place
from fedsim.errors import ConfigError
from fedsim.privacy import Accountant, Mechanism, Share, Unit, refuse_bad_budget
from fedsim.seeds import stream
from fedsim.wire import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    TRAIN_LOSS,
    shared_buffers,
    to_record,
    to_tensors,
)
from server.strategies import weighted_sum
from server.wrapped import WrappedStrategy

_MEANS = ("fedsgd", "fedavg", "fedavgm", "fedadam", "fedadagrad", "fedyogi", "fedprox")
"""Strategies that make something of the mean of all updates alone."""


@dataclass(frozen=True, kw_only=True)
class CentralDP:
    """Releases a model that hardly depends on any one client.

    Attributes:
        clipping_norm: C, the bound on the Euclidean norm of an update, in the units that the
            strategy averages: of a gradient for fedsgd, else of a change of weights.
        noise_multiplier: Standard deviation of the noise on the sum of all updates, over C.
        adaptive: Whether C follows the lengths of updates, from `clipping_norm` on.
        target_quantile: The share of updates that shall not be clipped (adaptive).
        norm_learning_rate: How fast C follows (adaptive).
        count_deviation: Standard deviation of the noise on the number of updates that are not
            clipped (adaptive); unset means a twentieth of the clients of a round.
        delta: The probability with which epsilon may be exceeded; well below 1 / clients.
        accountant: How rounds are added up; see `fedsim.privacy.Accountant`.
    """

    clipping_norm: float = 1.0
    noise_multiplier: float = 1.0
    adaptive: bool = False
    target_quantile: float = 0.5
    norm_learning_rate: float = 0.2
    count_deviation: float | None = None
    delta: float = 1e-5
    accountant: Accountant = "rdp"

    place: ClassVar[Place] = Place.SERVER
    unit: ClassVar[Unit] = "client"

    def __post_init__(self) -> None:
        """Refuse settings without meaning."""
        refuse_bad_budget(self.noise_multiplier, None, self.delta)
        if not self.clipping_norm > 0:
            raise ValueError(f"clipping_norm must be above 0, got {self.clipping_norm}")
        if not 0 < self.target_quantile < 1:
            raise ValueError(f"target_quantile must be in (0, 1), got {self.target_quantile}")
        if not self.norm_learning_rate > 0:
            raise ValueError(f"norm_learning_rate must be above 0, got {self.norm_learning_rate}")

    def check(self, experiment: Experiment, model: nn.Module) -> None:
        """Refuse strategies that need each update, running statistics, and too few clients."""
        strategy = experiment.server.strategy or experiment.training.algorithm
        if strategy not in _MEANS and ":" not in strategy:
            raise ConfigError(
                f"central-dp hands the strategy a noisy mean, and server.strategy '{strategy}' "
                f"needs each update; choose one of {', '.join(_MEANS)}"
            )
        if buffers := sorted(shared_buffers(model)):
            raise ConfigError(
                "central-dp would add noise to running statistics, which model "
                f"'{experiment.model.name}' has ('{buffers[0]}'): variances may come out negative; "
                "choose a model without batch normalisation"
            )
        clients = experiment.server.clients_per_round or experiment.partition.clients
        if any(one.name == "secure-aggregation" for one in experiment.defenses):
            raise ConfigError(
                "central-dp clips each update, and behind secure-aggregation the server has but "
                "their sum; let clients clip and add noise: local-dp"
            )
        if self.adaptive and self.noise_multiplier >= 2 * self._asked_for(clients):
            raise ConfigError(
                f"central-dp: with {clients} clients per round the number of short updates is told "
                f"with noise of {self._asked_for(clients):g}, and noise_multiplier must be "
                f"below twice that, got {self.noise_multiplier:g}; raise count_deviation or the "
                "number of clients, or lower noise_multiplier"
            )

    def noise_of_count(self, clients: int) -> float:
        """Return the deviation of the noise on the number of short updates, of so many clients.

        At least so much that it leaves the sum a share of the budget: far fewer may have answered
        than were drawn.
        """
        asked_for = self._asked_for(clients)
        least = self.noise_multiplier / math.sqrt(3)  # the sum then has twice the noise
        return asked_for if self.noise_multiplier < 2 * asked_for else least

    def noise_of_sum(self, clients: int) -> float:
        """Return the noise on the sum over C, so that sum and number cost what is asked for.

        The number of short updates takes its share of the budget (Andrew et al., theorem 1).
        """
        if not self.adaptive or self.noise_multiplier == 0:
            return self.noise_multiplier
        rest: float = self.noise_multiplier**-2 - (2 * self.noise_of_count(clients)) ** -2
        return 1 / math.sqrt(rest)

    def _asked_for(self, clients: int) -> float:
        return clients / 20 if self.count_deviation is None else self.count_deviation

    def tailored(self, share: Share) -> "CentralDP":  # noqa: ARG002 - noise is the same for all
        """Return itself."""
        return self

    def mechanism(self, share: Share) -> Mechanism:
        """Return one use of the Gaussian mechanism per round that a client takes part in.

        Nothing is gained from drawing clients: the draw is no secret here.
        """
        return Mechanism(
            noise_multiplier=self.noise_multiplier,
            sample_rate=1.0,
            num_steps=share.num_rounds,
            accountant=self.accountant,
        )

    def around(self, strategy: Strategy, seed: int, title: str) -> Strategy:
        """Return what hands `strategy` a noisy mean in place of the updates."""
        return NoisyMean(strategy, self, seed, title)

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Change nothing: the message is as the client sent it."""
        return seen, known


class NoisyMean(WrappedStrategy):
    """Tell `inner` of one update: the noisy mean of all clipped ones.

    Args:
        inner: Makes new weights of it.
        defense: The settings.
        seed: The experiment's.
        title: Names the streams of random numbers.

    Attributes:
        clipping_norm: C of the next round, an array without dimensions, as checkpoints keep it.
    """

    def __init__(self, inner: Strategy, defense: CentralDP, seed: int, title: str) -> None:
        super().__init__(inner)
        self.defense = defense
        self.seed = seed
        self.title = title
        self.clipping_norm = np.array(defense.clipping_norm)
        self._sent: dict[str, Tensor] = {}

    @property
    def wants_gradients(self) -> bool:
        """Whether replies are to hold gradients, as `inner` says."""
        return bool(getattr(self.inner, "wants_gradients", False))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Remember what updates are changes of: the weights sent, or nothing for gradients."""
        self._sent = to_tensors(arrays)
        return self.inner.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Clip, average, add noise, and let `inner` go on with that."""
        replies = list(replies)
        if not replies:
            return self.inner.aggregate_train(server_round, replies)
        contents = [reply.content for reply in replies]
        before = self._sent
        if self.wants_gradients:
            before = {name: torch.zeros_like(tensor) for name, tensor in before.items()}
        sent = [to_tensors(content.array_records[ARRAYS]) for content in contents]
        updates = [{name: one[name] - before[name] for name in one} for one in sent]
        mean = self.noisy_mean(updates, server_round)
        metrics = MetricRecord({NUM_EXAMPLES: 1})
        losses = [content.metric_records[METRICS].get(TRAIN_LOSS) for content in contents]
        known = [loss for loss in losses if isinstance(loss, float)]
        if len(known) == len(losses):
            metrics[TRAIN_LOSS] = sum(known) / len(known)
        told = replies[0]
        told.content = RecordDict(
            {
                ARRAYS: to_record({name: before[name] + mean[name] for name in sent[0]}),
                METRICS: metrics,
            }
        )
        return self.inner.aggregate_train(server_round, [told])

    def noisy_mean(self, updates: Sequence[Tensors], server_round: int) -> dict[str, Tensor]:
        """Return the mean of clipped updates, with noise; adaptive clipping then moves its bound.

        Args:
            updates: By name, of each client; not modified.
            server_round: The round.
        """
        rng = stream(self.seed, "round", server_round, "defense", self.title)
        norm, clients = float(self.clipping_norm), len(updates)
        lengths = [length_of(update) for update in updates]
        shares = [min(1.0, norm / length if length else 1.0) / clients for length in lengths]
        mean = weighted_sum([dict(update) for update in updates], shares)
        deviation = self.defense.noise_of_sum(clients) * norm / clients
        if self.defense.adaptive:
            short = sum(length <= norm for length in lengths)
            noise = self.defense.noise_of_count(clients) * float(torch.randn((), generator=rng))
            missed = (short + noise) / clients - self.defense.target_quantile
            self.clipping_norm = np.array(
                norm * math.exp(-self.defense.norm_learning_rate * missed)
            )
        return {
            name: (
                tensor + deviation * torch.randn(tensor.shape, generator=rng, dtype=torch.float64)
            ).to(updates[0][name].dtype)
            for name, tensor in mean.items()
        }
