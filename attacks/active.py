"""What attacks that change what clients are sent share."""

from torch import nn


class KeepsArchitecture:
    """The half of an active attack that changes weights alone."""

    def implant(
        self,
        model: nn.Module,
        input_shape: tuple[int, ...],  # noqa: ARG002 - nothing is added
        num_classes: int,  # noqa: ARG002
    ) -> nn.Module:
        """Return `model`: the architecture stays."""
        return model
