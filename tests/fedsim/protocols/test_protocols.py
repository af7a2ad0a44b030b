"""What holds for every protocol of the table."""

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from fedsim.catalog import load
from fedsim.protocols import PROTOCOLS
from fedsim.protocols.peer_protocol import Here, Parcel, PeerProtocol, State
from fedsim.protocols.simulate import Faults, play_round
from tests.fedsim.protocols.playing import (
    Graph,
    models,
    own_starts,
    play,
    quadratics,
    random_graph,
    ring,
)

VARIANTS: dict[str, tuple[str, dict[str, object]]] = {
    **{name: (name, {}) for name in PROTOCOLS},
    "combine-then-adapt": ("d-psgd", {"order": "combine-then-adapt"}),
    "at-once": ("d-psgd", {"order": "at-once"}),
    "pull": ("gossip", {"style": "pull"}),
    "push-pull": ("gossip", {"style": "push-pull"}),
}


def _made(variant: str) -> PeerProtocol:
    name, options = VARIANTS[variant]
    made: PeerProtocol = load(PROTOCOLS[name])(**options)
    return made


@pytest.fixture(params=VARIANTS)
def protocol(request: pytest.FixtureRequest) -> PeerProtocol:
    """One of them, in each of its variants."""
    return _made(request.param)


def network_for(protocol: PeerProtocol, num_peers: int, seed: int = 0) -> Graph:
    """Return a random graph that a protocol runs on."""
    rng = np.random.default_rng(seed)
    parents = [(int(rng.integers(peer)), peer) for peer in range(1, num_peers)]
    for network in (
        random_graph(num_peers, seed, directed=True),
        random_graph(num_peers, seed),
        ring(num_peers),
        Graph(num_peers=num_peers, links=parents, name="tree"),
    ):
        try:
            protocol.check(network)
        except ValueError:
            continue
        return network
    raise AssertionError(protocol)


def test_what_depends_on_lots_or_on_sizes_is_not_called_linear() -> None:
    not_linear = {variant for variant in VARIANTS if not _made(variant).linear}

    assert not_linear == {"gossip", "pull", "push-pull", "choco"}


def test_it_is_a_protocol_and_says_only_what_it_declares(protocol: PeerProtocol) -> None:
    assert isinstance(protocol, PeerProtocol)

    played = play(
        protocol, network_for(protocol, 6), own_starts(6), quadratics(6).gradient, rounds=3
    )

    kinds = {one.parcel.kind for whole in played for one in whole.said}
    assert kinds
    assert kinds <= protocol.kinds


def test_the_same_seed_gives_the_same_bits_in_both_precisions(protocol: PeerProtocol) -> None:
    network, losses = network_for(protocol, 6), quadratics(6)

    def gradient(peer: int, server_round: int, model: Tensor) -> Tensor:
        return losses.gradient(peer, server_round, model.double()).to(model)

    for dtype in (torch.float32, torch.float64):
        starts = [start.to(dtype) for start in own_starts(6)]
        once, again = (play(protocol, network, starts, gradient, rounds=4)[-1] for _ in range(2))
        assert torch.equal(models(protocol, once), models(protocol, again))
        assert models(protocol, once).dtype == dtype
        assert {
            one.parcel.tensors[name].dtype for one in once.said for name in one.parcel.tensors
        } <= {dtype, torch.float64, torch.int64}


def test_nothing_that_a_peer_remembers_or_heard_is_modified(protocol: PeerProtocol) -> None:
    network, losses = network_for(protocol, 6), quadratics(6)
    starts = own_starts(6)
    kept = [start.clone() for start in starts]

    first, *_ = played = play(protocol, network, starts, losses.gradient, rounds=3)
    alone = play(protocol, network, kept, losses.gradient, rounds=1)[0]

    assert len(played) == 3
    assert all(torch.equal(start, other) for start, other in zip(starts, kept, strict=True))
    for state, other in zip(first.states, alone.states, strict=True):
        assert all(torch.equal(state[name], other[name]) for name in state)
    for one, same in zip(first.said, alone.said, strict=True):
        for name, tensor in one.parcel.tensors.items():
            assert torch.equal(tensor, same.parcel.tensors[name])


@pytest.mark.parametrize(
    ("variant", "num_bytes"),
    [
        ("gradient-sharing", 2 * 4 * 40),
        ("d-psgd", 2 * 4 * 40),
        ("gradient-tracking", 2 * 2 * 4 * 40),
        ("push-sum", 2 * (4 * 40 + 8)),
        ("gossip", 4 * 40),
        ("pull", 4 * 40),
        ("choco", 2 * 4 * (4 + 8)),
        ("ring-all-reduce", 2 * (8 - 1) * 4 * 40 / 8),
    ],
)
def test_a_round_on_a_ring_costs_what_the_documentation_says(
    variant: str, num_bytes: float
) -> None:
    """Of eight peers with 40 coordinates of four bytes, on average."""
    starts = [start.float() for start in own_starts(8, 40)]

    (played,) = play(_made(variant), ring(8), starts, lambda *of: of[2])

    sent = [tensor for one in played.said for tensor in one.parcel.tensors.values()]
    assert sum(tensor.nbytes for tensor in sent) / 8 == num_bytes


@pytest.mark.parametrize("variant", [one for one in VARIANTS if _made(one).collective])
@pytest.mark.parametrize("hop", [0, 1, 3, 99])
def test_a_collective_ends_alike_among_those_that_are_left(variant: str, hop: int) -> None:
    protocol, losses = _made(variant), quadratics(6)
    network, start = network_for(protocol, 6), own_starts(1)[0]
    last = min(hop, protocol.num_hops(6, network.edges(1)))

    played = play_round(
        protocol,
        network,
        [protocol.begin(start)] * 6,
        losses.gradient,
        1,
        learning_rate=0.1,
        faults=Faults(failed={(1, 2): last, (1, 3): last}),
    )

    left = models(protocol, played)[[0, 1, 4, 5]]
    mean = torch.stack([losses.gradient(peer, 1, start) for peer in (0, 1, 4, 5)]).mean(0)
    torch.testing.assert_close(left, (start - 0.1 * mean).expand(4, -1), rtol=0, atol=1e-12)
    assert torch.equal(left, left[:1].expand(4, -1))


class _Reversed:
    """A protocol that is told what it heard in the opposite order of senders."""

    def __init__(self, inner: PeerProtocol) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        return self.inner.listen(state, dict(reversed(list(heard.items()))), at)


def test_the_order_in_which_senders_are_heard_changes_no_bit(protocol: PeerProtocol) -> None:
    network, losses = network_for(protocol, 8, seed=1), quadratics(8)
    backwards = _Reversed(protocol)

    last = play(protocol, network, own_starts(8), losses.gradient, rounds=4)[-1]
    other = play(backwards, network, own_starts(8), losses.gradient, rounds=4)[-1]  # type: ignore[arg-type]

    assert torch.equal(models(protocol, last), models(protocol, other))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("variant", [one for one in VARIANTS if _made(one).linear])
def test_linear_protocols_on_coefficients_say_what_they_say_on_numbers(
    variant: str, seed: int
) -> None:
    """Unknowns: the start of each peer and its update in each round; K = N (1 + rounds)."""
    protocol = _made(variant)
    num_peers, rounds, dim = 3 + seed, 3, 4
    network = network_for(protocol, num_peers, seed)
    rng = torch.Generator().manual_seed(seed)
    unknowns = torch.randn(num_peers * (1 + rounds), dim, generator=rng, dtype=torch.float64)
    one_hot = torch.eye(len(unknowns), dtype=torch.float64).expand(dim, -1, -1)

    def column(peer: int, server_round: int) -> int:
        return server_round * num_peers + peer

    on_coefficients = play(
        protocol,
        network,
        [one_hot[:, column(peer, 0)] for peer in range(num_peers)],
        lambda peer, number, _: one_hot[:, column(peer, number)],
        rounds=rounds,
    )
    on_numbers = play(
        protocol,
        network,
        list(unknowns[:num_peers]),
        lambda peer, number, _: unknowns[column(peer, number)],
        rounds=rounds,
    )

    for one, other in zip(on_coefficients, on_numbers, strict=True):
        for row, said in zip(one.said, other.said, strict=True):
            for name, tensor in said.parcel.tensors.items():
                coefficients = row.parcel.tensors[name]
                if name == "mass":
                    assert torch.equal(coefficients, tensor)
                    continue
                values = unknowns
                if said.parcel.chunk is not None:
                    values = values.tensor_split(said.parcel.num_chunks, dim=1)[said.parcel.chunk]
                expected = torch.einsum("dk,kd->d", coefficients, values)
                torch.testing.assert_close(tensor, expected, rtol=0, atol=1e-12)
        for peer in range(num_peers):
            model = torch.einsum("dk,kd->d", protocol.model(one.states[peer]), unknowns)
            torch.testing.assert_close(protocol.model(other.states[peer]), model)
