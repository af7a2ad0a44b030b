"""The labels of a rebuilt victim, read off its gradient or its pseudo-gradient. No paper."""

from collections.abc import Iterable

import torch
from torch import Tensor

from attacks.labels import calibrate, read_labels
from attacks.matching.coordinates import Coordinates
from attacks.matching.replay import Plan, step_shares
from attacks.matching.step_labels import classifier_signal, deal, give_out, place_of, stand_in
from attacks.matching.victim import Victim
from attacks.network import Layer, known_architecture, trace
from attacks.observation import AttackFailed, Knowledge, LocalRecipe, Tensors

_STAND_INS = 64
"""Made-up inputs whose predictions stand in for those of private examples."""


def labels_of(victim: Victim, known: Knowledge) -> Tensor:
    """Read the labels off the gradient heard, (B,) int64.

    Of one gradient in ascending order, see `attacks.labels`; the classifier in force says what it
    predicts, best with a public sample. Of several steps dealt out among the batches, see
    `attacks.matching.step_labels`.

    Raises:
        AttackFailed: No linear layer gives the logits, or its gradient was not heard completely.
    """
    traced = trace(*known_architecture(known))
    classifier = traced.classifier()
    labels = None
    if classifier is not None and victim.plan is not None:
        labels = _labels_over_steps(victim, victim.plan, known, classifier)
    elif classifier is not None:
        calibration = calibrate(
            victim.model,
            classifier,
            public=known.public_sample,
            noise=None,
            train_mode=(known.recipe or LocalRecipe()).train_mode,
        )
        for visible in (victim.visible, {}):
            labels = read_labels(
                victim.target,
                traced,
                visible=visible,
                batch_size=victim.batch_size,
                calibration=calibration,
            )
            if labels is not None or not _tells_labels(victim, classifier):
                break
    if labels is None:
        raise AttackFailed(
            "the labels cannot be read: no linear layer gives the logits, or its gradient was not "
            "heard completely"
        )
    return labels


def granted_labels(known: Knowledge, batch_size: int, *, like: Tensor) -> Tensor:
    """Return the private labels, as an oracle grants them, (B,) int64 on the device of `like`.

    Raises:
        AttackFailed: They were not granted, or are of another number of examples.
    """
    if known.labels is None:
        raise AttackFailed("labels = 'oracle' needs the private labels; grant 'labels'")
    if known.labels.shape != (batch_size,):
        raise AttackFailed(
            f"the labels granted have shape {tuple(known.labels.shape)}, expected ({batch_size},)"
        )
    return known.labels.to(like.device)


def _tells_labels(victim: Victim, classifier: Layer) -> bool:
    """Whether a classifier heard in part still tells labels, by what it lost being small.

    The entries of labels are the largest: who sends the largest alone, sends them. A single
    example has one entry below zero, at its label.
    """
    bias = victim.target.get(classifier.parameter("bias"))
    if bias is None:
        return False
    return victim.batch_size > 1 or bool((bias < 0).any())


def _labels_over_steps(
    victim: Victim, plan: Plan, known: Knowledge, classifier: Layer
) -> Tensor | None:
    rate = victim.recipe.learning_rate or 0.0
    moved = {name: -rate * tensor for name, tensor in victim.target.items()}
    shares = step_shares(victim.recipe, len(plan))
    standing = stand_in(
        victim.model,
        weights_after(victim, moved, victim.trained),
        classifier,
        stand_ins(victim, known),
        place=place_of(shares),
    )
    signal = classifier_signal(victim.target, classifier, standing, visible=victim.visible)
    if signal is None:
        return None
    counts = victim.batch_size * (standing.probabilities - signal / sum(shares))
    return deal(give_out(counts, victim.batch_size), plan)


def weights_after(
    victim: Victim, moved: Tensors, trained: Iterable[str]
) -> dict[str, Tensor] | None:
    """Return the weights in force plus what training added, by name.

    None when some of `trained` were not heard completely.
    """
    if victim.visible or not set(trained) <= moved.keys():
        return None
    parameters = dict(victim.model.named_parameters())
    return {name: parameters[name].detach() + change for name, change in moved.items()}


def stand_ins(victim: Victim, known: Knowledge) -> Tensor:
    """Return inputs whose predictions stand in for those of private examples, (N, ...).

    The public sample, if there is one; else clouds (see `Coordinates`), always the same.
    """
    if known.public_sample is not None:
        return known.public_sample.to(victim.like)
    coordinates = Coordinates(victim.input_shape, victim.input_range, like=victim.like)
    clouds = coordinates.clouds(_STAND_INS, rng=torch.Generator().manual_seed(0))
    return coordinates.inputs(clouds).clamp(*victim.input_range)
