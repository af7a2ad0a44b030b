"""A task: data, a model and a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import Loss
from fedsim.config import AttackConfig, DefenseConfig
from fedsim.data.images import ImageData
from fedsim.data.load import load_data
from fedsim.defenses import altered
from fedsim.models.build import build_model, refuse_misfit
from fedsim.named_attacks import implanted


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is learned: images, their classes, and the model that tells them apart.

    Attributes:
        data: The images.
        model: Name of the model.
        model_options: Its settings.
        loss: Training loss, mean over the batch; takes labels or class probabilities.
        defenses: The chain; some of them change the model.
        implant: The attack that has everybody train another model, if there is one.
    """

    data: ImageData
    model: str
    model_options: Mapping[str, object] = field(default_factory=dict)
    loss: Loss = functional.cross_entropy
    defenses: Sequence[DefenseConfig] = ()
    implant: AttackConfig | None = None

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.data.input_shape

    @property
    def num_classes(self) -> int:
        """K."""
        return self.data.num_classes

    def build_model(self, rng: torch.Generator) -> nn.Module:
        """Return a fresh model in training mode; all its weights are drawn from `rng`."""
        model = build_model(
            self.model, self.input_shape, self.num_classes, rng=rng, options=self.model_options
        )
        model = altered(model, self.defenses, self.input_shape, self.num_classes, rng=rng)
        if self.implant is None:
            return model
        return implanted(model, self.implant, self.input_shape, self.num_classes, rng=rng)


def load_task(
    *,
    data: str,
    data_root: str = "",
    data_options: Mapping[str, object],
    model: str,
    model_options: Mapping[str, object],
    defenses: Sequence[DefenseConfig] = (),
    implant: AttackConfig | None = None,
) -> Task:
    """Return the task of an experiment, its data loaded and its model tried on one blank image.

    Args:
        data: Name of the data set.
        data_root: Folder of data sets that are not embedded; empty means the user's cache folder.
        data_options: Settings of the data set.
        model: Name of the model.
        model_options: Settings of the model.
        defenses: The chain; some of them change the model.
        implant: The attack that has everybody train another model, if there is one.

    Raises:
        ConfigError: No such data set, model or option, or the model does not fit the images.
        DataMissing: The files of the data set are not there.
    """
    images = load_data(data, root=data_root, options=data_options)
    task = Task(
        data=images, model=model, model_options=model_options, defenses=defenses, implant=implant
    )
    trial = task.build_model(torch.Generator().manual_seed(0))
    refuse_misfit(model, trial, task.input_shape, task.num_classes)
    return task


def uninformed_loss(labels: Tensor) -> float:
    """Return the least mean cross entropy of a model that says the same of every input, in nats.

    That is the entropy of how frequent the classes are.

    Args:
        labels: Shape (N,), int64, N at least 1.
    """
    frequency = labels.bincount().double() / len(labels)
    return float(torch.special.entr(frequency).sum())


def evaluate(
    model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int = 256
) -> tuple[float, float]:
    """Return (accuracy in 0..1, mean cross entropy) in evaluation mode.

    Args:
        model: Left in the mode it was in.
        inputs: Shape (N, C, H, W), on any device.
        labels: Shape (N,), int64.
        batch_size: Examples per forward pass.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    correct = torch.zeros((), device=device)
    loss = torch.zeros((), device=device)
    with torch.no_grad():
        for start in range(0, len(labels), batch_size):
            batch = slice(start, start + batch_size)
            logits, expected = model(inputs[batch].to(device)), labels[batch].to(device)
            correct += (logits.argmax(dim=1) == expected).sum()
            loss += functional.cross_entropy(logits, expected, reduction="sum")
    model.train(was_training)
    return correct.item() / len(labels), loss.item() / len(labels)
