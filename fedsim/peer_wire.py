"""What travels between peers, by way of the relay, and the check of what arrives.

A parcel is an `ArrayRecord` of flat vectors and, beside it, a `ConfigRecord` that says what they
are. The relay reads the latter alone: it hands the arrays on without decoding a byte.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from torch import Tensor

from attacks.observation import Tensors
from fedsim.protocols.peer_protocol import MessageKind, Parcel
from fedsim.wire import BadReply, check_tensor, to_record

STEP = "peer_step"
"""Message type, after `train.`: take what was said in the hop before, and speak in this one."""
REPORT = "peer_report"
"""Message type, after `query.`: tell the simulator the model; no peer ever hears it."""
ADOPT = "peer_adopt"
"""Message type, after `query.`: begin anew from a model that another member sent."""

HOP = "hop"
SPEAKS = "speaks"
MEMBERS = "members"
ABSENT = "absent"
"""Who did not answer in the round before."""
REFUSED = "refused"
"""Senders of what a peer did not take."""
REASONS = "reasons"
"""Why, one for each of them."""
TRAINED = "trained"
"""Whether local training took place in answer to this message."""
MODEL = "model"
SEALED = "sealed"
"""Kind, and name of the bytes, of a parcel that is encrypted for its receiver."""

_PARCEL, _ABOUT = "parcel-", "about-"
_EARLY = "early-"
_SENDER, _TO, _KIND = "sender", "to", "kind"
_CHUNK, _NUM_CHUNKS, _SUMMED = "chunk", "num-chunks", "summed"
_ROUND, _HOP = "said-in-round", "said-in-hop"
_TOLD = (_KIND, _CHUNK, _NUM_CHUNKS)
_UNREAD = "unread"

_NAMES = {
    MessageKind.MODEL: ("model",),
    MessageKind.GRADIENT: ("gradient",),
    MessageKind.MODEL_AND_TRACKER: ("model", "tracker"),
    MessageKind.SHARE: ("numerator", "mass"),
    MessageKind.REQUEST: (),
    MessageKind.SPARSE_CHANGE: ("values", "places"),
    MessageKind.PARTIAL_SUM: ("chunk",),
    MessageKind.TOTAL: ("chunk",),
}
"""The tensors of a parcel, by its kind."""

_IN_CHUNKS = frozenset({MessageKind.PARTIAL_SUM, MessageKind.TOTAL})
"""Kinds that may hold a chunk of the coordinates; the others hold all of them."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """Where each parameter lies in the flat vectors that peers exchange.

    Attributes:
        shapes: Shape by parameter name, in the order of the model.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, parameters: Tensors) -> "Layout":
        """Return the layout of these parameters."""
        return cls(shapes={name: tuple(tensor.shape) for name, tensor in parameters.items()})

    @property
    def size(self) -> int:
        """D, the number of entries."""
        return sum(map(_numel, self.shapes.values()))

    def vector(self, tensors: Tensors) -> Tensor:
        """Return named tensors as one vector (D,)."""
        return torch.cat([tensors[name].reshape(-1) for name in self.shapes])

    def tensors(self, vector: Tensor) -> dict[str, Tensor]:
        """Return a vector (D,) as named tensors; they share its memory."""
        parts = torch.split(vector, [_numel(shape) for shape in self.shapes.values()])
        return {
            name: part.reshape(shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }


def _numel(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


@dataclass(frozen=True, kw_only=True)
class Addressed:
    """A parcel on its way, still as its sender packed it.

    Attributes:
        sender: Who said it.
        to: Whom it is for.
        round: When it was said.
        hop: When it was said.
        arrays: Its tensors.
        about: What they are.
    """

    sender: int
    to: tuple[int, ...]
    round: int
    hop: int
    arrays: ArrayRecord
    about: ConfigRecord

    @property
    def num_bytes(self) -> int:
        """Size of its tensors."""
        return sum(len(array.data) for array in self.arrays.values())

    @property
    def kind(self) -> str:
        """What it says that it holds."""
        return str(self.about.get(_KIND, ""))


def put_post(content: RecordDict, place: int, to: Iterable[int], parcel: Parcel) -> None:
    """Put what a peer says into its reply."""
    content[f"{_PARCEL}{place:03d}"] = to_record(parcel.tensors)
    content[f"{_ABOUT}{place:03d}"] = ConfigRecord(
        {
            **about(parcel.kind),
            _TO: list(to),
            _CHUNK: -1 if parcel.chunk is None else parcel.chunk,
            _NUM_CHUNKS: parcel.num_chunks,
            _SUMMED: list(parcel.members),
        }
    )


def put_raw(content: RecordDict, place: int, to: Iterable[int], arrays: ArrayRecord) -> None:
    """Put a parcel that is encrypted into a reply: of it, nothing but its receivers is told."""
    content[f"{_PARCEL}{place:03d}"] = arrays
    content[f"{_ABOUT}{place:03d}"] = ConfigRecord({_KIND: SEALED, _TO: list(to)})


def about(kind: MessageKind) -> ConfigRecord:
    """Return what is said of a parcel that holds all coordinates, and no sum."""
    return ConfigRecord({_KIND: str(kind), _CHUNK: -1, _NUM_CHUNKS: 1, _SUMMED: []})


def take_posts(content: RecordDict) -> None:
    """Take what a peer says out of its reply, or what others said out of a message to it."""
    prefixes = (_PARCEL, _ABOUT, _EARLY + _PARCEL, _EARLY + _ABOUT)
    for name in [name for name in content if name.startswith(prefixes)]:
        del content[name]


def posts_of(
    content: RecordDict, *, sender: int, server_round: int, hop: int, receivers: Iterable[int]
) -> list[Addressed]:
    """Return what a peer said, as the relay hands it on; only what it may say to whom it may.

    A receiver is told one thing by a sender in a hop: of several, the first.
    """
    allowed = set(receivers)
    said = []
    for name in sorted(content.config_records):
        if not name.startswith(_ABOUT):
            continue
        about = content.config_records[name]
        arrays = content.array_records.get(_PARCEL + name.removeprefix(_ABOUT))
        if arrays is None:
            continue
        to = tuple(peer for peer in dict.fromkeys(integers(about.get(_TO))) if peer in allowed)
        allowed -= set(to)
        said.append(
            Addressed(
                sender=sender,
                to=to,
                round=server_round,
                hop=hop,
                arrays=arrays,
                about=describe(about),
            )
        )
    return said


def describe(about: ConfigRecord) -> ConfigRecord:
    """Return what is said of a parcel, without anything that nobody asks for."""
    plain = {key: one for key in _TOLD if isinstance(one := about.get(key), int | str)}
    return ConfigRecord({**plain, _SUMMED: integers(about.get(_SUMMED))})


def unread(one: Addressed, why: str) -> Addressed:
    """Return a parcel that could not be decrypted: who opens it is told why."""
    return replace(one, about=ConfigRecord({**one.about, _UNREAD: why}))


def deliver(content: RecordDict, said: Sequence[Addressed], *, early: bool = False) -> None:
    """Put what others said to a peer into the message to it.

    Args:
        content: The message.
        said: In order.
        early: Whether the peer is told beforehand what it will hear of this hop: an adversary that
            waits until the others have spoken.
    """
    prefix = _EARLY if early else ""
    for place, one in enumerate(said):
        content[f"{prefix}{_PARCEL}{place:03d}"] = one.arrays
        about = {key: value for key, value in one.about.items() if key != _TO}
        about |= {_SENDER: one.sender, _ROUND: one.round, _HOP: one.hop}
        content[f"{prefix}{_ABOUT}{place:03d}"] = ConfigRecord(about)


def delivered(content: RecordDict, *, early: bool = False) -> list[Addressed]:
    """Return what a message to a peer carries, undecoded, in order; `early` as in `deliver`.

    Raises:
        BadReply: It does not say who said it and when, or a parcel is missing.
    """
    prefix = _EARLY if early else ""
    said = []
    for name in sorted(content.config_records):
        if not name.startswith(prefix + _ABOUT):
            continue
        about = content.config_records[name]
        parcel = f"{prefix}{_PARCEL}" + name.removeprefix(prefix + _ABOUT)
        if parcel not in content.array_records:
            raise BadReply(f"'{name}' is about a parcel that is not there")
        said.append(
            Addressed(
                sender=_integer(about, _SENDER),
                to=(),
                round=_integer(about, _ROUND),
                hop=_integer(about, _HOP),
                arrays=content.array_records[parcel],
                about=about,
            )
        )
    return said


def open_parcel(
    one: Addressed, *, kinds: Iterable[MessageKind], size: int, dtype: torch.dtype
) -> Parcel:
    """Check and decode what another peer said.

    Args:
        one: As it arrived.
        kinds: What the protocol's messages hold.
        size: D, the entries of the model.
        dtype: Of the model.

    Raises:
        BadReply: It is of another kind, a tensor is missing, too much, of the wrong form, or not a
            finite number.
    """
    if _UNREAD in one.about:
        raise BadReply(str(one.about[_UNREAD]))
    known = {str(kind): kind for kind in kinds}
    if one.kind not in known:
        raise BadReply(f"a message must be one of {sorted(known)}, got '{one.kind}'")
    kind = known[one.kind]
    chunk, num_chunks = _integer(one.about, _CHUNK), _integer(one.about, _NUM_CHUNKS)
    if num_chunks < 1 or not -1 <= chunk < num_chunks:
        raise BadReply(f"chunk {chunk} of {num_chunks} is none")
    if kind not in _IN_CHUNKS and (chunk, num_chunks) != (-1, 1):
        raise BadReply(f"'{kind}' must hold all coordinates, got chunk {chunk} of {num_chunks}")
    expected = _expected(kind, one.arrays, size, dtype, None if chunk < 0 else (chunk, num_chunks))
    if set(one.arrays) != set(expected):
        raise BadReply(f"'{kind}' must hold {sorted(expected)}, got {sorted(one.arrays)}")
    tensors = {
        name: check_tensor(name, one.arrays[name], template) for name, template in expected.items()
    }
    if kind is MessageKind.SPARSE_CHANGE:
        _check_places(tensors["places"], size)
    if "mass" in tensors and not tensors["mass"] > 0:
        raise BadReply(f"'mass' must be above 0, got {float(tensors['mass']):g}")
    return Parcel(
        kind=kind,
        tensors=tensors,
        chunk=None if chunk < 0 else chunk,
        num_chunks=num_chunks,
        members=tuple(integers(one.about.get(_SUMMED))),
    )


def _expected(
    kind: MessageKind,
    arrays: ArrayRecord,
    size: int,
    dtype: torch.dtype,
    chunk: tuple[int, int] | None,
) -> dict[str, Tensor]:
    """Return tensors of the form that those of a parcel must have; they take no memory."""
    if chunk is not None:
        place, num_chunks = chunk
        size = size // num_chunks + (place < size % num_chunks)
    if kind is MessageKind.SPARSE_CHANGE and "values" in arrays:
        shape = tuple(arrays["values"].shape)
        if len(shape) != 1 or type(shape[0]) is not int or not 0 <= shape[0] <= size:
            raise BadReply(f"'values' must be at most {size} numbers, got shape {shape}")
        size = shape[0]
    forms = {"mass": ((1,), torch.float64), "places": ((size,), torch.int64)}
    return {
        name: torch.empty(shape, dtype=form, device="meta")
        for name in _NAMES[kind]
        for shape, form in [forms.get(name, ((size,), dtype))]
    }


def _check_places(places: Tensor, size: int) -> None:
    if not len(places):
        return
    if places[0] < 0 or places[-1] >= size or bool((places.diff() <= 0).any()):
        raise BadReply(f"'places' must ascend from 0 to {size - 1}")


def _integer(about: Mapping[str, object], key: str) -> int:
    value = about.get(key)
    if not isinstance(value, int) or isinstance(value, bool):
        raise BadReply(f"'{key}' must be a whole number, got {value!r}")
    return value


def integers(value: object) -> list[int]:
    """Return the whole numbers of a list that came over the wire."""
    if not isinstance(value, list):
        return []
    return [one for one in value if isinstance(one, int) and not isinstance(one, bool)]
