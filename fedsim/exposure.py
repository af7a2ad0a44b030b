"""Whose updates an adversary among peers can compute, told before anything is trained.

The protocol is run on coefficients, without rounding (`fedsim.protocols.residues`), and what the
adversary would hear is reduced: an update is exposed in the coordinates in which it follows from
what is heard, whatever the others compute. What could be estimated besides is not counted.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from attacks.isolation.identifiability import ReducedRows
from attacks.isolation.unknowns import Unknowns
from attacks.threats import Capability
from fedsim.config import Experiment
from fedsim.defenses import hides_messages
from fedsim.errors import ConfigError
from fedsim.files import Record
from fedsim.protocols.build import protocol_of
from fedsim.protocols.coefficients import MessageRow, coefficients
from fedsim.protocols.peer_protocol import PeerProtocol
from fedsim.protocols.residues import LARGEST_DENOMINATOR, residue_units
from fedsim.protocols.simulate import MixingNetwork
from fedsim.threat import places_of, threat_of, victims_of
from fedsim.topologies.build import network_of


@dataclass(frozen=True, kw_only=True, eq=False)
class Exposure:
    """Which updates follow from what is heard.

    Attributes:
        shares: (T, N), the part of the coordinates of each update that follows from everything that
            is heard in all rounds; 1 for the adversary's own.
        since: (T, N) int, the round after which as much is known; 0 where nothing ever is.
        distances: (N,) int, links that a peer's messages cross until they are heard: 0 for the
            adversary's own peers, 1 for those that it hears, -1 for those that never reach it.
        own: The adversary's own peers.
    """

    shares: np.ndarray
    since: np.ndarray
    distances: np.ndarray
    own: tuple[int, ...]

    def by_distance(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each distance but 0 and the peers at it, those never heard of last."""
        found = sorted({int(one) for one in self.distances if one > 0})
        for distance in [*found, -1]:
            peers = np.flatnonzero(self.distances == distance).tolist()
            if peers:
                yield distance, peers

    def record(self) -> Record:
        """Return it as what is written as JSON; rounds and peers by number."""
        rounds, num_peers = self.shares.shape
        return {
            "rounds": rounds,
            "peers": num_peers,
            "own": list(self.own),
            "distances": self.distances.tolist(),
            "exposed": [
                {
                    "round": number + 1,
                    "peer": peer,
                    "share": float(self.shares[number, peer]),
                    "since": int(self.since[number, peer]),
                }
                for number, peer in zip(*np.nonzero(self.shares), strict=True)
                if peer not in self.own
            ],
        }


def exposure(experiment: Experiment) -> Exposure:
    """Return which updates of a decentralised experiment follow from what its adversary hears.

    Nobody is supposed to fail. Every peer is a victim, whatever `adversary.victims` says.

    Raises:
        ConfigError: The experiment has a server, its protocol is not linear, or it is wrong.
    """
    if not experiment.decentralised:
        raise ConfigError(
            "exposure is about peers that train without a server; set topology.name and "
            "protocol.name (a server is sent every update as it is)"
        )
    protocol, places = protocol_of(experiment), places_of(experiment)
    if not protocol.linear:
        raise ConfigError(
            f"what is said under protocol '{experiment.protocol.name}' is not linear in the "
            "updates, so this map does not exist; docs/isolation.md says what can be told of it"
        )
    victims_of(experiment, places.peers)
    threat = threat_of(experiment)
    hidden = hides_messages(experiment)
    rate = Fraction(experiment.training.learning_rate).limit_denominator(LARGEST_DENOMINATOR)
    # what follows from what does not depend on how small a step is, as long as there is one
    rate = max(rate, Fraction(1, LARGEST_DENOMINATOR))
    try:
        return exposed(
            protocol,
            network_of(experiment),
            rounds=experiment.rounds,
            own=places.peers,
            hears=places.hear,
            # on an encrypted link it hears how much is said, and nothing of what
            listens_in=(lambda _: False) if hidden else experiment.adversary.listens_in,
            knows_start=Capability.WEIGHTS in threat.grants,
            own_starts=experiment.protocol.start == "own",
            learning_rate=float(rate),
            moves_weights=experiment.training.update_kind != "gradient",
        )
    except ValueError as error:
        raise ConfigError(f"the map of exposure: {error}") from error


def exposed(
    protocol: PeerProtocol,
    network: MixingNetwork,
    *,
    rounds: int,
    own: Sequence[int] = (),
    hears: Callable[[int, int], bool] | None = None,
    listens_in: Callable[[int], bool] = lambda server_round: server_round > 0,
    own_starts: bool = False,
    knows_start: bool = True,
    learning_rate: float = 0.1,
    moves_weights: bool = False,
) -> Exposure:
    """Return which updates follow from what is heard.

    Args:
        protocol: A linear one.
        network: Its mixing weights and the learning rate must be fractions, of denominators up to
            10^6.
        rounds: How many are trained.
        own: Peers whose updates, and starts, the adversary knows.
        hears: (sender, receiver) -> whether a link is heard; None for those of its own peers.
        listens_in: round -> whether what is said in it is kept.
        own_starts: Whether each peer starts from weights of its own.
        knows_start: Whether the adversary knows the weights that all peers start from.
        learning_rate: Step size.
        moves_weights: Whether an update is a change of weights in place of a gradient.

    Raises:
        ValueError: A weight is no such fraction.
    """
    unknowns = Unknowns(num_peers=network.num_peers, rounds=rounds, own_starts=own_starts)
    heard = hears or (lambda sender, receiver: sender in own or receiver in own)
    common = [unknowns.start(0)] if knows_start and not own_starts else []
    known = unknowns.of_peers(own) + common
    chunks = _Chunks(len(unknowns), known)
    since = np.zeros((rounds, network.num_peers), dtype=np.int64)
    shares = np.zeros((rounds, network.num_peers))
    for said in coefficients(
        protocol,
        network,
        unknowns,
        learning_rate=learning_rate,
        moves_weights=moves_weights,
        hears=heard,
        units=residue_units,
    ):
        if listens_in(said.round):
            chunks.add(said.messages)
        now = chunks.shares()[unknowns.num_starts :].reshape(shares.shape)
        now[said.round :] = 0  # own updates are known once they are computed
        since[now > shares] = said.round
        shares = now
    return Exposure(
        shares=shares,
        since=since,
        distances=_distances(network, rounds, own, heard),
        own=tuple(own),
    )


class _Chunks:
    """What was heard in each segment of the coordinates, as one of so many equal parts of them."""

    def __init__(self, num_columns: int, known: Sequence[int]) -> None:
        self.num_columns, self.known = num_columns, known
        self.parts = [ReducedRows(num_columns, known)]

    def add(self, messages: Sequence[MessageRow]) -> None:
        """Take in what was heard in a round; all chunks of a run are cut alike."""
        ends = {one.num_chunks for one in messages if one.chunk is not None}
        if ends and len(self.parts) == 1:
            count = max(ends)
            self.parts = [ReducedRows(self.num_columns, self.known) for _ in range(count)]
        said: dict[tuple[int, int], dict[int, np.ndarray]] = {}
        for one in messages:
            chunk = (0, 1) if one.chunk is None else (one.chunk, one.num_chunks)
            said.setdefault(chunk, {})[id(one.row)] = one.row
        for place, part in enumerate(self.parts):
            rows = [
                row
                for (chunk, num_chunks), heard in said.items()
                if _covers(chunk, num_chunks, place, len(self.parts))
                for row in heard.values()
            ]
            if rows:
                part.add(np.stack(rows))

    def shares(self) -> np.ndarray:
        """Return the part of the coordinates in which each unknown follows, (U,)."""
        masks = np.stack([part.determined() for part in self.parts])
        return np.asarray(masks.mean(axis=0))


def _covers(chunk: int, num_chunks: int, place: int, num_parts: int) -> bool:
    """Whether a chunk of the coordinates holds one of so many equal parts of them."""
    return chunk * num_parts <= place * num_chunks and (place + 1) * num_chunks <= (
        (chunk + 1) * num_parts
    )


def _distances(
    network: MixingNetwork, rounds: int, own: Collection[int], hears: Callable[[int, int], bool]
) -> np.ndarray:
    """Return the links that messages of each peer cross until they are heard, (N,)."""
    edges = {edge for number in range(1, rounds + 1) for edge in network.edges(number)}
    distances = np.full(network.num_peers, -1)
    distances[list(own)] = 0
    front = {sender for sender, receiver in edges if hears(sender, receiver)} - set(own)
    distance = 1
    while front:
        distances[list(front)] = distance
        distance += 1
        front = {sender for sender, to in edges if to in front and distances[sender] < 0}
    return distances
