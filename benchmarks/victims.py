"""Victims for benchmarks: a model, private images, and what an adversary hears of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks import ATTACKS
from attacks.metrics.assignment import match
from attacks.metrics.images import psnr_db
from attacks.observation import (
    Attack,
    AttackFailed,
    Budget,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
    Reconstruction,
)
from clients.local_training import local_update
from fedsim.catalog import resolve
from fedsim.config import TrainingConfig
from fedsim.models.build import build_model
from fedsim.models.normalize import Normalize
from fedsim.seeds import stream

CIFAR_MEAN, CIFAR_STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and standard deviation of a channel of CIFAR-10."""

MISSED_DB = 0.0
"""PSNR that an image counts with for which there is no guess at all."""

Transform = Callable[[Tensor], Tensor]
"""What becomes of each tensor of a gradient before it is heard."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Victim:
    """Private images, and what was heard of them.

    Attributes:
        inputs: Shape (B, C, H, W).
        labels: Shape (B,).
        seen: What was heard.
        known: What was granted.
        seed: Of everything drawn for it.
    """

    inputs: Tensor
    labels: Tensor
    seen: Observation
    known: Knowledge
    seed: int


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One attack on one victim.

    Attributes:
        psnr_db: Per private image, guesses paired one to one; `MISSED_DB` where there is none.
        labels_right: Share of the multiset of labels that was found; None where none is guessed.
        certified: Private images whose guess is certified and right to 30 dB.
        false_certificates: Certified guesses that are not.
        seconds: Wall time of the attack.
        failed: Why the attack failed, if it did.
    """

    psnr_db: list[float] = field(default_factory=list)
    labels_right: float | None = None
    certified: int = 0
    false_certificates: int = 0
    seconds: float = 0.0
    failed: str | None = None

    @property
    def mse(self) -> float:
        """Mean squared error over the images."""
        return sum(10 ** (-one / 10) for one in self.psnr_db) / max(1, len(self.psnr_db))


def attack_named(name: str, **options: Any) -> Attack:
    """Return an attack by its name in `ATTACKS`."""
    attack: Attack = resolve(name, ATTACKS, "attack")(**options)
    return attack


def fresh_model(
    name: str,
    seed: int,
    *,
    shape: tuple[int, ...] = (3, 32, 32),
    num_classes: int = 10,
    normalise: bool = False,
    **options: Any,
) -> nn.Module:
    """Return an untrained model, its weights drawn from `seed`."""
    model = build_model(name, shape, num_classes, rng=stream(seed, "model"), options=options)
    return nn.Sequential(Normalize(CIFAR_MEAN, CIFAR_STD), model) if normalise else model


def overhear(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    seed: int,
    *,
    train_mode: bool = False,
    dtype: torch.dtype = torch.float32,
    sent: Transform | None = None,
) -> Victim:
    """Take the gradient that a client would send, and what the server knows of it.

    Args:
        model: With the weights in force; its mode and precision are set.
        inputs: The private images.
        labels: Their labels.
        seed: Of the attack.
        train_mode: Whether the client trains in training mode.
        dtype: In which the client computes.
        sent: What becomes of the gradient before it is heard.
    """
    model = model.to(dtype).train(train_mode)
    named = dict(model.named_parameters())
    loss = functional.cross_entropy(model(inputs.to(dtype)), labels)
    gradient = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    if sent is not None:
        gradient = {name: sent(tensor) for name, tensor in gradient.items()}
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update=gradient,
        weights={name: parameter.detach().clone() for name, parameter in named.items()},
        buffers={name: buffer.clone() for name, buffer in model.named_buffers()},
        num_examples=len(labels),
    )
    known = Knowledge(
        model=model,
        input_shape=tuple(inputs.shape[1:]),
        batch_size=len(labels),
        recipe=LocalRecipe(train_mode=train_mode),
    )
    return Victim(inputs=inputs, labels=labels, seen=seen, known=known, seed=seed)


def overhear_training(
    model: nn.Module,
    inputs: Tensor,
    labels: Tensor,
    seed: int,
    *,
    batch_size: int,
    epochs: int,
    learning_rate: float,
    momentum: float = 0.0,
) -> Victim:
    """Take what a client sends after local SGD: the change of its weights.

    Args:
        model: With the weights in force; it is trained in place.
        inputs: All images of the client.
        labels: Their labels.
        seed: Of the shuffling, and of the attack.
        batch_size: Examples per step.
        epochs: Passes over the images.
        learning_rate: Of local SGD.
        momentum: Of local SGD.
    """
    training = TrainingConfig(
        algorithm="fedavg",
        batch_size=batch_size,
        local_epochs=epochs,
        learning_rate=learning_rate,
        momentum=momentum,
        returns="delta",
    )
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    update = local_update(
        model,
        functional.cross_entropy,
        inputs,
        labels,
        training,
        seed=seed,
        server_round=1,
        client=0,
    )
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.DELTA,
        update={name: update.tensors[name] for name in before},
        weights=before,
        buffers=buffers,
        num_examples=len(labels),
    )
    recipe = LocalRecipe(
        learning_rate=learning_rate,
        momentum=momentum,
        num_epochs=epochs,
        batch_size=batch_size,
    )
    known = Knowledge(
        model=model,
        input_shape=tuple(inputs.shape[1:]),
        batch_size=len(labels),
        recipe=recipe.for_examples(len(labels)),
    )
    return Victim(inputs=inputs, labels=labels, seen=seen, known=known, seed=seed)


def strike(attack: Attack, victim: Victim, *, budget_s: float | None = None) -> Judged:
    """Attack one victim and judge the guess."""
    try:
        guess = attack(
            victim.seen,
            victim.known,
            rng=stream(victim.seed, "attack"),
            budget=Budget(budget_s) if budget_s else None,
        )
    except AttackFailed as failed:
        return Judged(psnr_db=[MISSED_DB] * len(victim.labels), failed=str(failed))
    return judge(guess, victim)


def judge(guess: Reconstruction, victim: Victim) -> Judged:
    """Pair guesses and private images one to one, and compare them."""
    found = Judged(
        psnr_db=[MISSED_DB] * len(victim.labels),
        labels_right=None if guess.labels is None else overlap(guess.labels, victim.labels),
        seconds=guess.seconds,
    )
    if guess.inputs is None or len(guess.inputs) == 0:
        return found
    pixels = guess.inputs.detach().cpu().float().clamp(0, 1)[: len(victim.labels)]
    pairs = match(pixels, victim.inputs)
    rows, columns = [row for row, _ in pairs], [column for _, column in pairs]
    quality = list(found.psnr_db)
    for row, db in zip(rows, psnr_db(pixels[columns], victim.inputs[rows]).tolist(), strict=True):
        quality[row] = max(MISSED_DB, db)
    if guess.certified is None:
        return replace(found, psnr_db=quality)
    proved = guess.certified.tolist()
    right = sum(proved[column] and quality[row] >= 30 for row, column in pairs)
    wrong = sum(proved) - right
    return replace(found, psnr_db=quality, certified=right, false_certificates=wrong)


def overlap(guessed: Tensor, labels: Tensor) -> float:
    """Return the share of the multiset of labels that was found."""
    classes = int(torch.cat((guessed.cpu(), labels)).max()) + 1
    both = torch.minimum(
        torch.bincount(guessed.cpu(), minlength=classes), torch.bincount(labels, minlength=classes)
    )
    return int(both.sum()) / len(labels)


def data_mean_db(train_inputs: Tensor, victims: Sequence[Victim]) -> list[float]:
    """Return what guessing the mean of the training images achieves, per private image."""
    mean = train_inputs.mean(dim=0)
    return [
        db
        for victim in victims
        for db in psnr_db(mean.expand_as(victim.inputs), victim.inputs).tolist()
    ]


def every(victims: Sequence[Victim], attack: Attack, **options: Any) -> Mapping[str, Any]:
    """Attack every victim; return per-image PSNR, failures and seconds."""
    judged = [strike(attack, victim, **options) for victim in victims]
    return {
        "psnr_db": [db for one in judged for db in one.psnr_db],
        "judged": judged,
        "failures": [one.failed for one in judged if one.failed],
    }
