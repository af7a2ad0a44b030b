"""What the adversary heard between peers, raw, as files of the run directory.

One pair of files per round, hop and ear: tensors, and a record of the messages. A parcel that goes
to several peers is stored once. An ear is where the adversary listens: `peer-3` on a peer of its
own, `tap` on links, `relay` on all of them. What crossed no link that an ear hears is not in its
files; from them alone the stage `isolate` makes observations.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from attacks.observation import Tensors
from fedsim.checked_records import read_checked
from fedsim.files import (
    Record,
    digest,
    file_in,
    part_of,
    read_tensors,
    reading,
    replace_json,
    replace_tensors,
)
from fedsim.peer_wire import Addressed, open_parcel
from fedsim.peers import Federation
from fedsim.protocols.peer_protocol import MessageKind, Parcel
from fedsim.records import RunDirectory
from fedsim.schemas.views import ViewRecord
from fedsim.wire import BadReply

OWN = "own"
"""Prefix of what an ear on a peer knows of that peer itself."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """One message between two peers, as an ear heard it.

    Attributes:
        sender: Who said it.
        receiver: To whom.
        round: When it was said; before the round of the view, if it came late.
        hop: When it was said.
        num_bytes: Size of its tensors.
        parcel: What it says; None where the link hides it, or it is no sound message.
    """

    sender: int
    receiver: int
    round: int
    hop: int
    num_bytes: int
    parcel: Parcel | None


@dataclass(frozen=True, kw_only=True)
class View:
    """What one ear heard in one hop.

    Attributes:
        round: From 1.
        hop: From 0.
        lost: Members of a collective that were missing by then; each loss begins a round again.
        ear: Where it listens: `peer-3`, `tap` or `relay`.
        messages: In the order of sender, then as they were said.
        own: What a peer that is the adversary's own knows of itself: `update`, (D,), if it
            trained in this hop, and `weights`, (D,), at which it did.
        silent: Peers that did not answer the relay in this hop; no other ear can tell.
    """

    round: int
    hop: int
    ear: str
    lost: int = 0
    messages: Sequence[Heard] = ()
    own: Tensors = field(default_factory=dict)
    silent: Sequence[int] = ()

    @property
    def stem(self) -> str:
        """Of its two files."""
        again = f"lost-{self.lost}-" if self.lost else ""
        return f"round-{self.round:05d}-hop-{self.hop:02d}-{again}{self.ear}"


def heard(
    said: Iterable[Addressed], federation: Federation, *, hidden: bool = False
) -> list[Heard]:
    """Return what messages say, one per receiver.

    Args:
        said: As they were packed.
        federation: Says what a sound message is.
        hidden: Whether they are encrypted where they are heard: then sizes alone are.
    """
    messages = []
    for one in said:
        parcel = None if hidden else _opened(one, federation)
        messages += [
            Heard(
                sender=one.sender,
                receiver=receiver,
                round=one.round,
                hop=one.hop,
                num_bytes=one.num_bytes,
                parcel=parcel,
            )
            for receiver in one.to
        ]
    return messages


def _opened(one: Addressed, federation: Federation) -> Parcel | None:
    try:
        # a member of a collective that begins anew is sent a model, whatever the protocol says
        kinds = federation.protocol.kinds | {MessageKind.MODEL}
        return open_parcel(one, kinds=kinds, size=federation.layout.size, dtype=federation.dtype)
    except BadReply:
        return None


def add_to_view(run: RunDirectory, view: View) -> None:
    """Write what an ear heard, in addition to what it has heard of the same hop before."""
    if (run.views / f"{view.stem}.json").is_file():
        before = read_view(run, view.stem)
        view = View(
            round=view.round,
            hop=view.hop,
            ear=view.ear,
            lost=view.lost,
            messages=[*before.messages, *view.messages],
            own={**before.own, **view.own},
            silent=sorted({*before.silent, *view.silent}),
        )
    if not view.messages and not view.own and not view.silent:
        return
    messages = sorted(view.messages, key=lambda one: one.sender)
    tensors = {f"{OWN}/{name}": tensor for name, tensor in view.own.items()}
    places: dict[int, str] = {}
    records = []
    for one in messages:
        if one.parcel is not None and id(one.parcel) not in places:
            place = f"{len(places):04d}"
            places[id(one.parcel)] = place
            tensors |= {f"{place}/{name}": t for name, t in one.parcel.tensors.items()}
        records.append(_record(one, places.get(id(one.parcel))))
    record: Record = {
        "round": view.round,
        "hop": view.hop,
        "ear": view.ear,
        "lost": view.lost,
        "messages": records,
        "own": sorted(view.own),
        "silent": list(view.silent),
        "sha256": digest(tensors),
    }
    replace_tensors(run.views / f"{view.stem}.safetensors", tensors)
    replace_json(run.views / f"{view.stem}.json", record)  # last: it marks the whole as there


def _record(one: Heard, place: str | None) -> Record:
    parcel = one.parcel
    return {
        "sender": one.sender,
        "receiver": one.receiver,
        "round": one.round,
        "hop": one.hop,
        "num_bytes": one.num_bytes,
        "kind": None if parcel is None else str(parcel.kind),
        "chunk": None if parcel is None else parcel.chunk,
        "num_chunks": 1 if parcel is None else parcel.num_chunks,
        "members": [] if parcel is None else list(parcel.members),
        "parcel": place if parcel is not None else None,
    }


def views_of(run: RunDirectory, server_round: int) -> list[View]:
    """Return all that was heard in a round, in the order of losses, hop and ear."""
    found = [
        read_view(run, path.stem)
        for path in sorted(run.views.glob(f"round-{server_round:05d}-*.json"))
    ]
    return sorted(found, key=lambda view: (view.lost, view.hop, view.ear))


def forget_views(run: RunDirectory, *, after: int) -> None:
    """Remove what was heard after the last whole round: it is played again."""
    for path in run.views.glob("round-*"):
        if int(path.name.split("-")[1]) > after:
            path.unlink()


def read_view(run: RunDirectory, stem: str) -> View:
    """Return what one ear heard in one hop.

    Raises:
        Damaged: A file is not as `add_to_view` wrote it.
        OSError: There is none of this stem.
    """
    path = file_in(run.views, f"{stem}.json")
    record = read_checked(ViewRecord, path)
    tensors, _ = read_tensors(path.with_suffix(".safetensors"))
    with reading(path):
        return _view(record, tensors)


def _view(record: Record, tensors: dict[str, Tensor]) -> View:
    parcels: dict[str, Parcel] = {}
    messages = []
    for one in record["messages"]:
        place = one["parcel"]
        if place is not None and place not in parcels:
            parcels[place] = _parcel(one, part_of(tensors, place))
        messages.append(
            Heard(
                sender=one["sender"],
                receiver=one["receiver"],
                round=one["round"],
                hop=one["hop"],
                num_bytes=one["num_bytes"],
                parcel=None if place is None else parcels[place],
            )
        )
    return View(
        round=record["round"],
        hop=record["hop"],
        ear=record["ear"],
        lost=record["lost"],
        messages=messages,
        own=part_of(tensors, OWN),
        silent=record["silent"],
    )


def _parcel(record: Record, tensors: dict[str, Tensor]) -> Parcel:
    return Parcel(
        kind=MessageKind(record["kind"]),
        tensors=tensors,
        chunk=record["chunk"],
        num_chunks=record["num_chunks"],
        members=tuple(record["members"]),
    )
