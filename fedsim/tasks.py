"""A task: data, a model and a loss."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import Loss
from attacks.tabular.columns import Columns
from attacks.text.language import cross_entropy
from attacks.text.tokens import IGNORED, Tokens
from fedsim.config import AttackConfig, DefenseConfig
from fedsim.data.kinds import TaskData
from fedsim.data.load import load_data
from fedsim.defenses import altered
from fedsim.models.build import build_model, refuse_misfit
from fedsim.named_attacks import implanted


@dataclass(frozen=True, kw_only=True, eq=False)
class Task:
    """What is learned: examples, their labels, and the model that tells them.

    Attributes:
        data: Images, text or a table.
        model: Name of the model.
        model_options: Its settings.
        loss: Training loss, mean over the batch; takes labels or class probabilities.
        defenses: The chain; some of them change the model.
        implant: The attack that has everybody train another model, if there is one.
    """

    data: TaskData
    model: str
    model_options: Mapping[str, object] = field(default_factory=dict)
    loss: Loss = functional.cross_entropy
    defenses: Sequence[DefenseConfig] = ()
    implant: AttackConfig | None = None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return self.data.input_shape

    @property
    def tokens(self) -> Tokens | None:
        """Of text, its vocabulary and what is predicted."""
        return getattr(self.data, "tokens", None)

    @property
    def columns(self) -> Columns | None:
        """Of a table, its features."""
        return getattr(self.data, "columns", None)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.data.num_classes

    def build_model(self, rng: torch.Generator) -> nn.Module:
        """Return a fresh model in training mode; all its weights are drawn from `rng`."""
        model = build_model(
            self.model,
            self.input_shape,
            self.num_classes,
            rng=rng,
            options=self.model_options,
            tokens=self.tokens,
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
    loaded = load_data(data, root=data_root, options=data_options)
    task = Task(
        data=loaded,
        model=model,
        model_options=model_options,
        loss=cross_entropy if loaded.train_labels.ndim > 1 else functional.cross_entropy,
        defenses=defenses,
        implant=implant,
    )
    trial = task.build_model(torch.Generator().manual_seed(0))
    refuse_misfit(model, trial, task.input_shape, task.num_classes, task.tokens)
    return task


def uninformed_loss(labels: Tensor) -> float:
    """Return the least mean cross entropy of a model that says the same of every input, in nats.

    That is the entropy of how frequent the classes are.

    Args:
        labels: Shape (N,), or (N, T) of tokens that are predicted, int64; at least one.
    """
    labels = labels[labels != IGNORED]
    frequency = labels.bincount().double() / len(labels)
    return float(torch.special.entr(frequency).sum())


def evaluate(
    model: nn.Module, inputs: Tensor, labels: Tensor, batch_size: int = 256
) -> tuple[float, float]:
    """Return (accuracy in 0..1, mean cross entropy) in evaluation mode.

    Args:
        model: Left in the mode it was in.
        inputs: Shape (N, ...), on any device.
        labels: Shape (N,), int64; or (N, T) of tokens, and accuracy is that of those predicted.
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
            flat, expected = logits.flatten(0, -2), expected.flatten()
            correct += (flat.argmax(dim=1) == expected).sum()
            loss += functional.cross_entropy(flat, expected, reduction="sum", ignore_index=IGNORED)
    model.train(was_training)
    predicted = int((labels != IGNORED).sum())
    return correct.item() / predicted, loss.item() / predicted
