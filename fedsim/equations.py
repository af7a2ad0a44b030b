"""What an adversary heard between peers, as equations about what every peer computed.

Every vector of every message is a known combination of the updates of peers and of what they
started from. The combinations come from the protocol itself, run on coefficients, where it is
linear; a sum of a collective says itself whose updates are in it. What cannot be put this way is
left out: after the first round of a protocol that draws lots, nobody can say what was mixed.

Only what the adversary can know goes in. It takes for granted that peers which it hears nothing
about follow the plan: from a peer that is silent towards it, it concludes that this peer failed.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from torch import Tensor

from attacks.isolation.prior import size_of
from attacks.isolation.unknowns import Unknowns
from attacks.isolation.updates import Heard as HeardVector
from attacks.isolation.updates import Load, Wanted
from attacks.threats import Capability, Position
from fedsim.meddled import Meddled, WithPhantoms
from fedsim.peers import Federation
from fedsim.protocols.coefficients import MessageRow, RoundRows, coefficients
from fedsim.protocols.peer_protocol import MessageKind, Parcel, PeerProtocol
from fedsim.protocols.simulate import Faults, MixingNetwork
from fedsim.records import RunDirectory
from fedsim.threat import places_of, threat_of
from fedsim.views import Heard, View, read_view, views_of
from fedsim.wire import shared_parameters

Update = tuple[int, int]
"""Peer and round."""

WORK = 4e10
"""Vectors heard, squared, times unknowns: what a decomposition costs. Beyond that the oldest rounds
that were heard are forgotten: the last ones tell of the last updates as exactly."""
FEWEST_ROUNDS = 3
"""So many of the last rounds are never forgotten."""
HELD = 2**26
"""Numbers in the rows of weights; beyond that the oldest are forgotten: told without weights."""

_SUMS = (MessageKind.PARTIAL_SUM, MessageKind.TOTAL)


@dataclass(frozen=True, kw_only=True, eq=False)
class Combination:
    """A vector, in terms of what the adversary does not know and of what it said itself.

    Attributes:
        row: Coefficients of the unknowns, (U,).
        said: Coefficients of its own messages, by receiver and round, where it is active.
    """

    row: np.ndarray
    said: Mapping[Update, float] = field(default_factory=dict)


@dataclass(kw_only=True, eq=False)
class Equations:
    """All equations so far.

    Attributes:
        federation: What is known of all peers beforehand.
        run: Where views lie.
        heard: Vectors by the round in which they were heard, each once; rows are over the unknowns
            up to that round.
        known: Vectors that the adversary knows, by column.
        weights: What the weights were at which an update was computed.
        told_by: Updates that are part of what their own peer said.
        raw: Updates that were sent as they are, with the number of vectors that hold them.
        own_words: What an active peer told a receiver in a round, by receiver and round.
        sizes: Bytes heard of each peer in each round, where a link hides all else.
        round: The last one taken in.
    """

    federation: Federation
    run: RunDirectory
    heard: dict[int, list[HeardVector]] = field(default_factory=dict)
    known: dict[int, Load] = field(default_factory=dict)
    weights: dict[Update, "Combination"] = field(default_factory=dict)
    told_by: set[Update] = field(default_factory=set)
    raw: dict[Update, int] = field(default_factory=dict)
    own_words: dict[Update, Load] = field(default_factory=dict)
    sizes: dict[Update, int] = field(default_factory=dict)
    round: int = 0

    def __post_init__(self) -> None:
        experiment = self.federation.experiment
        self.places = places_of(experiment)
        threat = threat_of(experiment)
        self.at_relay = threat.position is Position.RELAY
        own_starts = experiment.protocol.start == "own"
        self.num_peers = experiment.partition.clients
        # what an active peer says to each of its receivers is known, and nobody's update
        self.phantoms = self._phantoms() if threat.active else {}
        self.unknowns, self._all = (
            Unknowns(num_peers=count, rounds=experiment.rounds, own_starts=own_starts)
            for count in (self.num_peers, self.num_peers + len(self.phantoms))
        )
        knows_start = range(1) if Capability.WEIGHTS in threat.grants else range(0)
        for peer in self.places.peers if own_starts else knows_start:
            # drawn now: PyTorch has one generator for all threads, and training goes on beside
            self.known[self.unknowns.start(peer)] = functools.partial(_given, self._start(peer))
        self.failed: dict[Update, int] = {}
        self.lost: set[tuple[int, int, int, int]] = set()
        self._drift = np.zeros(len(self.unknowns))
        self._planned: dict[tuple[object, ...], list[Combination]] = {}
        self._spoke: set[int] = set()
        self._rows = self._plan()
        self._read = functools.lru_cache(maxsize=16)(functools.partial(read_view, self.run))

    def _combination(self, row: np.ndarray) -> "Combination":
        """Return a row over all columns as one over unknowns, and what the adversary said."""
        width = len(self.unknowns_now())
        if not self.phantoms:
            return Combination(row=row[:width].copy())  # without the zeros of rounds to come
        count, starts = self._all.num_peers, self._all.num_starts
        updates = row[starts:].reshape(-1, count)
        real = np.concatenate(
            [row[: self.unknowns.num_starts], updates[:, : self.num_peers].ravel()]
        )
        receivers = {phantom: receiver for receiver, phantom in self.phantoms.items()}
        said = {
            (receivers[int(place) + self.num_peers], int(number) + 1): float(
                updates[number, place + self.num_peers]
            )
            for number, place in np.argwhere(updates[:, self.num_peers :])
        }
        return Combination(row=real[:width].copy(), said=said)

    def said(self, combination: "Combination") -> Tensor | float:
        """Return the part of a vector that the adversary's own messages make up, (D,) or 0."""
        total: Tensor | float = 0.0
        for update, weight in sorted(combination.said.items()):
            total = total + weight * self.own_words[update]().double()
        return total

    def unknowns_now(self) -> Unknowns:
        """Return those of the rounds so far: the first columns of every row."""
        return Unknowns(
            num_peers=self.unknowns.num_peers,
            rounds=self.round,
            own_starts=self.unknowns.own_starts,
        )

    def wanted(self, update: Update) -> Wanted:
        """Return an update as what is asked for, with the weights that it was computed at."""
        peer, server_round = update
        at = self.weights.get(update)
        return Wanted(
            peer=peer, round=server_round, weights=None if at is None else self._padded(at.row)
        )

    def vectors(self) -> list[HeardVector]:
        """Return what was heard, with rows over the rounds so far."""
        return [
            replace(one, row=self._padded(one.row))
            for number in sorted(self.heard)
            for one in self.heard[number]
        ]

    def _padded(self, row: np.ndarray) -> np.ndarray:
        """Return a row over the unknowns of earlier rounds as one over those so far."""
        return np.pad(row, (0, len(self.unknowns_now()) - len(row)))

    def forget_weights(self, update: Update) -> None:
        """Forget at which weights an update was computed: it has been told."""
        self.weights.pop(update, None)

    def _trim(self) -> None:
        """Forget the oldest of what was heard, and of weights, beyond what can be worked with."""
        width = len(self.unknowns_now())
        while (
            sum(map(len, self.heard.values())) ** 2 * width > WORK
            and min(self.heard) <= self.round - FEWEST_ROUNDS
        ):
            del self.heard[min(self.heard)]
        held = sum(len(one.row) for one in self.weights.values())
        for update in list(self.weights):
            if held <= HELD:
                break
            held -= len(self.weights.pop(update).row)

    def take(self, server_round: int) -> None:
        """Take in what was heard in a round; rounds must come in order."""
        self.round = server_round
        views = views_of(self.run, server_round)
        if self.federation.experiment.adversary.listens_in(server_round):
            before = dict(self.failed)
            self._note_faults(server_round, views)
            if any(number < server_round for number, _ in self.failed.keys() - before.keys()):
                self._plan_again(server_round)
        rows = next(self._rows, None)
        if rows is not None:
            for peer, row in rows.weights.items():
                if peer < self.num_peers and peer not in self.places.peers:
                    self.weights[peer, server_round] = self._combination(row)
            for one in rows.messages:
                key = (one.round, one.hop, one.sender, one.receiver, one.name)
                self._planned.setdefault(key, []).append(self._combination(one.row))
        done: set[tuple[object, ...]] = set()
        for view in views:
            self._note_own(view)
            self.heard.setdefault(server_round, []).extend(self._in(view, done))
        if not self.federation.protocol.delivers_late:
            self._planned.clear()
        self._note_sums(server_round, views)
        self._trim()

    # rows

    def _phantoms(self) -> dict[int, int]:
        """Return a number beyond those of peers for each peer that the adversary speaks to."""
        network, rounds = self.federation.network, self.federation.experiment.rounds
        edges = {
            edge
            for number in (range(1, rounds + 1) if network.varies else [1])
            for edge in network.edges(number)
        }
        told = sorted({receiver for sender, receiver in edges if sender in self.places.peers})
        return {receiver: self.num_peers + place for place, receiver in enumerate(told)}

    def _plan(self) -> Iterator[RoundRows]:
        """Return the rows of every message, round by round, as far as they are known."""
        protocol: PeerProtocol = self.federation.protocol
        network: MixingNetwork = self.federation.network
        experiment = self.federation.experiment
        if self.phantoms:
            protocol = Meddled(
                inner=protocol,
                me=self.places.peers[0],
                phantoms=self.phantoms,
                unknowns=self._all,
                meddles_in=experiment.adversary.listens_in,
            )
            network = WithPhantoms(inner=network, num_peers=self._all.num_peers)
        if protocol.collective:
            return self._collective()
        if not (protocol.linear or self.lots_known):
            return self._first_round()
        return coefficients(
            protocol,
            network,
            self._all,
            learning_rate=experiment.training.learning_rate,
            seed=experiment.seed,
            moves_weights=experiment.training.update_kind != "gradient",
            faults=Faults(failed=self.failed, lost=self.lost),
            hears=self.places.hear,
            lots_known=self.lots_known,
        )

    def _plan_again(self, server_round: int) -> None:
        """Begin the plan anew, up to a round: something is known of those before it."""
        self._rows = self._plan()
        for _ in range(1, server_round):
            next(self._rows, None)

    @property
    def lots_known(self) -> bool:
        """Whether lots that peers draw show: to who hears everything, in every round."""
        experiment = self.federation.experiment
        return (
            self.places.links is None
            and MessageKind.SPARSE_CHANGE not in self.federation.protocol.kinds
            and all(map(experiment.adversary.listens_in, range(1, experiment.rounds + 1)))
        )

    def _collective(self) -> Iterator[RoundRows]:
        """Yield where updates are computed; what is said says itself what it is a sum of."""
        for number in range(1, self.unknowns.rounds + 1):
            weights = {
                peer: self.unknowns.unit(self.unknowns.start(peer)) + self._drift
                for peer in range(self.num_peers)
            }
            yield RoundRows(round=number, messages=[], weights=weights)

    def _first_round(self) -> Iterator[RoundRows]:
        """Yield the first round of a protocol in which a peer steps, then speaks, then mixes."""
        peers = range(self.num_peers)
        starts = {peer: self.unknowns.unit(self.unknowns.start(peer)) for peer in peers}
        said = {
            peer: start + self._moved * self.unknowns.unit(self.unknowns.update(peer, 1))
            for peer, start in starts.items()
        }
        messages = [
            MessageRow(
                round=1,
                hop=hop,
                sender=sender,
                receiver=receiver,
                kind=MessageKind.MODEL,
                name="model",
                chunk=None,
                num_chunks=1,
                row=said[sender],
            )
            for sender, receiver in self.federation.network.edges(1)
            for hop in range(self.federation.protocol.num_hops(self.num_peers))
        ]
        yield RoundRows(round=1, messages=messages, weights=starts)

    @property
    def _moved(self) -> float:
        """What an update is multiplied by before it is added to weights."""
        training = self.federation.experiment.training
        return -training.learning_rate if training.update_kind == "gradient" else 1.0

    def _note_sums(self, server_round: int, views: Sequence[View]) -> None:
        """Take the step that a collective ends with: along the mean of those who were there."""
        if not self.federation.protocol.collective:
            return
        totals = [
            one.parcel.members
            for view in sorted(views, key=lambda view: view.lost)
            for one in view.messages
            if one.parcel is not None and one.parcel.kind is MessageKind.TOTAL
            if all(0 <= peer < self.num_peers for peer in one.parcel.members)
        ]
        members = totals[-1] if totals else tuple(range(self.num_peers))
        for peer in members:
            column = self.unknowns.update(peer, server_round)
            self._drift = self._drift + self._moved / len(members) * self.unknowns.unit(column)

    # what was heard

    def _in(self, view: View, done: set[tuple[object, ...]]) -> Iterator[HeardVector]:
        """Yield the vectors of a view that have a row, each once."""
        stored: set[tuple[int, str]] = set()
        for place, one in enumerate(view.messages):
            if one.parcel is None:
                update = (one.sender, view.round)
                self.sizes[update] = self.sizes.get(update, 0) + one.num_bytes
                continue
            for name, vector in one.parcel.tensors.items():
                key = (one.round, one.hop, one.sender, one.receiver, name)
                said = self._row(one.parcel, view.round, key)
                again = (*key, view.lost, one.parcel.chunk)
                same = (id(one.parcel), name) in stored and not self.phantoms
                if said is None or again in done or same:
                    continue
                done.add(again)
                stored.add((id(one.parcel), name))
                load = functools.partial(self._vector, view.stem, place, name)
                if self.phantoms and one.sender in self.places.peers:
                    self.own_words[one.receiver, one.round] = load
                    continue
                self._note_direct(one, said.row)
                yield HeardVector(
                    row=said.row,
                    load=functools.partial(self._unsaid, load, said) if said.said else load,
                    size=size_of(vector),
                    chunk=one.parcel.chunk,
                    num_chunks=one.parcel.num_chunks,
                )

    def _row(
        self, parcel: Parcel, server_round: int, key: tuple[object, ...]
    ) -> Combination | None:
        """Return how a vector depends on the unknowns; None if nobody can say."""
        if parcel.kind not in _SUMS:
            rows = self._planned.get(key)
            return rows.pop(0) if rows else None
        row = np.zeros(len(self.unknowns_now()))
        for peer in parcel.members:
            if not 0 <= peer < self.num_peers:
                return None
            row[self.unknowns.update(peer, server_round)] += 1.0
        return Combination(row=row)

    def _note_direct(self, one: Heard, row: np.ndarray) -> None:
        """Note whose updates are told by their own peer, and which are sent as they are."""
        columns = np.flatnonzero(row)
        for column in columns[columns >= self.unknowns.num_starts].tolist():
            update = self.unknowns.peer_and_round(column)
            if update[0] == one.sender:
                self.told_by.add(update)
            if len(columns) == 1 and row[column] == 1.0:
                self.raw[update] = self.raw.get(update, 0) + 1

    def _note_own(self, view: View) -> None:
        if "update" in view.own:
            peer = int(view.ear.removeprefix("peer-"))
            column = self.unknowns.update(peer, view.round)
            self.known[column] = functools.partial(self._own, view.stem)

    # faults

    def _note_faults(self, server_round: int, views: Sequence[View]) -> None:
        """Conclude who failed from who was silent."""
        for view in views:
            for peer in view.silent:
                self.failed.setdefault((server_round, peer), view.hop)
        protocol = self.federation.protocol
        messages = [one for view in views for one in view.messages if one.round == server_round]
        hidden = messages and all(one.parcel is None for one in messages)
        if protocol.collective or not protocol.linear or hidden:
            return
        own = self.places.peers
        sound = {(one.sender, one.receiver) for one in messages if one.parcel is not None}
        spoke = {one.sender for one in messages}
        listened = {receiver for _, receiver in sound}
        if protocol.delivers_late and server_round > 1:
            self._note_absent(server_round, messages)
        self._spoke = spoke
        absent = Faults(failed=self.failed).absent(server_round)
        edges = [
            (sender, receiver)
            for sender, receiver in self.federation.network.edges(server_round)
            if not (protocol.delivers_late and receiver in absent)  # nobody speaks to them
        ]
        for peer in own:
            if peer not in spoke and any(sender == peer for sender, _ in edges):
                self.failed[server_round, peer] = 0
            elif peer not in listened and any(receiver == peer for _, receiver in edges):
                self.failed[server_round, peer] = 1
        deaf = {peer for peer in own if (server_round, peer) in self.failed}
        for sender, receiver in edges:
            if not self.places.hear(sender, receiver) or sender in own or receiver in deaf:
                continue
            if sender not in spoke:
                self.failed.setdefault((server_round, sender), 0)
            elif (sender, receiver) not in sound and not protocol.delivers_late:
                self.lost.add((server_round, 0, sender, receiver))

    def _note_absent(self, server_round: int, messages: Sequence[Heard]) -> None:
        """Conclude who did not answer in the round before from whom nobody speaks to."""
        spoke = {one.sender for one in messages}
        told = {(one.sender, one.receiver) for one in messages}
        for sender, receiver in self.federation.network.edges(server_round):
            heard = self.places.hear(sender, receiver)
            if heard and sender in spoke and (sender, receiver) not in told:
                # who was there at the beginning of the round was gone at its end
                hop = 1 if receiver in self._spoke else 0
                self.failed.setdefault((server_round - 1, receiver), hop)

    # vectors

    def _start(self, peer: int) -> Tensor:
        model = self.federation.start(peer)
        return self.federation.layout.vector(shared_parameters(model))

    def _vector(self, stem: str, place: int, name: str) -> Tensor:
        parcel = self._read(stem).messages[place].parcel
        return parcel.tensors[name]  # type: ignore[union-attr]  # it was there when it was taken in

    def _unsaid(self, load: Load, combination: Combination) -> Tensor:
        return load().double() - self.said(combination)

    def _own(self, stem: str) -> Tensor:
        return self._read(stem).own["update"]


def _given(vector: Tensor) -> Tensor:
    return vector
