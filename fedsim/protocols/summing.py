"""What collectives that sum gradients share: how a round begins, begins again, and ends.

While a round lasts a peer keeps its gradient, and after it the model that the round began with, so
that the round can begin again whenever a member fails, even one that was only to hear the last
message: `model` and `gradient` as they were, and `sum` anew.
"""

from collections.abc import Mapping, Sequence

from torch import Tensor

from fedsim.protocols.peer_protocol import Here, MessageKind, Parcel, State, Unfit


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


def chunk_of(
    heard: Mapping[int, Sequence[Parcel]],
    sender: int,
    at: Here,
    *,
    kind: MessageKind,
    members: tuple[int, ...],
    chunk: int | None = None,
    num_chunks: int = 1,
) -> Tensor:
    """Return what the one member that must have spoken said.

    Args:
        heard: Parcels by sender.
        sender: The member.
        at: Where the one who listens stands.
        kind: What it must have said, and so on as `Parcel` has them.
        members: Whose gradients it must have summed.
        chunk: Which chunk it must be.
        num_chunks: Of how many.

    Raises:
        Unfit: It said nothing, or something else.
    """
    if sender not in heard:
        raise Unfit(sender, f"peer {at.me} heard nothing of peer {sender} in hop {at.hop}")
    said = heard[sender][-1]
    if (said.kind, said.chunk, said.num_chunks) != (kind, chunk, num_chunks):
        raise Unfit(
            sender,
            f"hop {at.hop}: expected '{kind}', {_chunk(chunk, num_chunks)}, got '{said.kind}', "
            f"{_chunk(said.chunk, said.num_chunks)}",
        )
    if said.members != members:
        raise Unfit(
            sender,
            f"hop {at.hop}: expected the sum over peers {_names(members)}, got that over "
            f"{_names(said.members)}",
        )
    return said.tensors["chunk"]


def _chunk(chunk: int | None, num_chunks: int) -> str:
    return "all coordinates" if chunk is None else f"chunk {chunk} of {num_chunks}"


def _names(members: tuple[int, ...]) -> str:
    named = ", ".join(map(str, members[:8]))
    return f"{named} and {len(members) - 8} more" if len(members) > 8 else named or "nobody"
