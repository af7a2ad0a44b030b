"""What is heard of a client whose update was defended."""

from typing import Any

from torch import nn

from attacks.observation import Kind, Observation, Tensors


def heard(
    update: Tensors,
    server_round: int = 1,
    *,
    kind: Kind = Kind.GRADIENT,
    model: nn.Module | None = None,
    **more: Any,
) -> Observation:
    """Return an update as it is heard.

    Args:
        update: By name.
        server_round: When.
        kind: What the update is.
        model: Its weights are heard, too; None where weights are not.
        more: Further fields of the observation.
    """
    if model is not None:
        more["weights"] = {name: p.detach().clone() for name, p in model.named_parameters()}
    return Observation(
        round=server_round, sender="a", receiver="b", kind=kind, update=update, **more
    )
