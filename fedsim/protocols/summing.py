"""What collectives that sum gradients share: how a round begins, begins again, and ends.

While a round lasts a peer keeps its gradient, and after it the model that the round began with, so
that the round can begin again whenever a member fails, even one that was only to hear the last
message: `model` and `gradient` as they were, and `sum` anew.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Parcel, State


def roll_call(state: State, at: Here) -> State:
    """Return what a peer remembers after hop 0, in which it computes its gradient."""
    return {"model": state["model"], "gradient": at.local(state["model"])}


def begun(state: State) -> State:
    """Return what a peer remembers at the beginning of hop 1, whatever it has done since."""
    gradient = state["gradient"]
    return {"model": state.get("before", state["model"]), "gradient": gradient, "sum": gradient}


def ended(state: State, total: Tensor, at: Here) -> State:
    """Return what a peer remembers after the last hop, in which it steps along the mean."""
    before = state["model"]
    model = at.moved(before, total / len(at.members))
    return {"model": model, "before": before, "gradient": state["gradient"]}


def chunk_of(heard: Mapping[int, Sequence[Parcel]], sender: int, at: Here) -> Tensor:
    """Return what the one member that must have spoken said.

    Raises:
        ValueError: It did not.
    """
    if sender not in heard:
        raise ValueError(f"peer {at.me} heard nothing of peer {sender} in hop {at.hop}")
    return heard[sender][-1].tensors["chunk"]
