"""What every data set is, be it images, text or tables."""

from typing import Literal, Protocol

from torch import Tensor

Modality = Literal["image", "text", "table"]


class TaskData(Protocol):
    """Labelled examples, in memory on the CPU, of which some are held by no client.

    `fedsim.data.images.ImageData`, `fedsim.data.text.TextData` and `fedsim.data.tables.TableData`
    say what their tensors hold.
    """

    @property
    def modality(self) -> Modality:
        """What an example is."""

    @property
    def name(self) -> str:
        """As experiments write it."""

    @property
    def train_inputs(self) -> Tensor:
        """What clients hold, (N, ...)."""

    @property
    def train_labels(self) -> Tensor:
        """Classes (N,), or what each position predicts (N, T), int64."""

    @property
    def test_inputs(self) -> Tensor:
        """Of examples that no client holds."""

    @property
    def test_labels(self) -> Tensor:
        """Like `train_labels`."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """K names; empty where tokens are predicted."""

    @property
    def num_classes(self) -> int:
        """Width of the model's output."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input: (C, H, W), (T,) or (D,)."""
