"""Graphs of peers: what each is, and what it refuses."""

import math
from pathlib import Path

import networkx as nx
import pytest

from fedsim.errors import ConfigError
from fedsim.topologies import TOPOLOGIES
from fedsim.topologies.network import PeerNetwork
from fedsim.topologies.snapshot import Facts

RANDOM = ("watts-strogatz", "erdos-renyi", "random-regular")
WITHOUT_FILE = sorted(set(TOPOLOGIES) - {"edges"})


def network(name: str, num_peers: int, **options: object) -> PeerNetwork:
    return PeerNetwork(name=name, num_peers=num_peers, options=options)


def facts(name: str, num_peers: int, **options: object) -> Facts:
    return network(name, num_peers, **options).facts(1)


@pytest.mark.parametrize("name", WITHOUT_FILE)
def test_peers_are_numbered_from_0_and_nobody_is_linked_to_itself(name: str) -> None:
    made = network(name, 16)

    assert list(made.graph(1)) == list(range(16))
    assert all(one != other for one, other in made.edges(1))


@pytest.mark.parametrize(
    ("name", "num_peers", "expected"),
    [
        ("ring", 3, nx.complete_graph(3)),
        ("ring", 7, nx.cycle_graph(7)),
        ("line", 5, nx.path_graph(5)),
        ("star", 5, nx.star_graph(4)),
        ("complete", 6, nx.complete_graph(6)),
        ("torus", 12, nx.cartesian_product(nx.cycle_graph(3), nx.cycle_graph(4))),
        ("grid", 6, nx.cartesian_product(nx.path_graph(2), nx.path_graph(3))),
        ("hypercube", 8, nx.hypercube_graph(3)),
        ("tree", 7, nx.balanced_tree(2, 2)),
    ],
)
def test_a_fixed_graph_is_the_one_that_its_name_says(
    name: str, num_peers: int, expected: "nx.Graph[int]"
) -> None:
    assert nx.is_isomorphic(network(name, num_peers).graph(1), expected)


def test_neighbours_are_those_that_the_numbers_say() -> None:
    assert network("ring", 5).senders(1, 0) == (1, 4)
    assert network("torus", 12).senders(1, 0) == (1, 3, 4, 8)  # 3 rows of 4
    assert network("grid", 6).senders(1, 0) == (1, 3)  # 2 rows of 3
    assert network("hypercube", 8).senders(1, 5) == (1, 4, 7)
    assert network("tree", 6, branching=2).senders(1, 1) == (0, 3, 4)
    assert network("star", 4).senders(1, 0) == (1, 2, 3)


@pytest.mark.parametrize("num_peers", [2, 3, 6, 8])
def test_diameters_and_degrees_are_those_of_the_textbook(num_peers: int) -> None:
    assert facts("ring", num_peers).diameter == num_peers // 2
    assert facts("line", num_peers).diameter == num_peers - 1
    assert facts("star", num_peers).diameter == min(2, num_peers - 1)
    assert facts("complete", num_peers).diameter == 1
    assert facts("complete", num_peers).num_links == math.comb(num_peers, 2)
    cube = facts("hypercube", 2**num_peers)
    assert (cube.diameter, cube.min_degree, cube.max_degree) == (num_peers,) * 3


def test_everybody_on_a_torus_has_four_neighbours() -> None:
    found = facts("torus", 20)

    assert (found.min_degree, found.mean_degree, found.max_degree) == (4, 4.0, 4)
    assert found.num_links == 40
    assert found.diameter == 4 // 2 + 5 // 2


def test_a_lattice_takes_the_rows_or_columns_that_it_is_told() -> None:
    assert network("grid", 12, rows=2).senders(1, 0) == (1, 6)
    assert network("grid", 12, columns=2).senders(1, 0) == (1, 2)
    assert network("grid", 12, rows=6, columns=2).links(1) == network("grid", 12, rows=6).links(1)


def test_a_small_world_without_shortcuts_is_a_ring_of_near_neighbours() -> None:
    assert network("watts-strogatz", 10, k=4, p=0).senders(1, 0) == (1, 2, 8, 9)
    assert facts("watts-strogatz", 20, k=4, p=0.3).num_links == 40


def test_everybody_on_a_regular_graph_has_as_many_neighbours() -> None:
    found = facts("random-regular", 31, degree=6)

    assert (found.min_degree, found.max_degree) == (6, 6)


@pytest.mark.parametrize(("num_peers", "degree"), [(100, 95), (40, 38), (9, 8), (7, 6)])
def test_a_regular_graph_may_be_almost_complete(num_peers: int, degree: int) -> None:
    found = facts("random-regular", num_peers, degree=degree)

    assert (found.min_degree, found.max_degree) == (degree, degree)


def test_a_graph_of_probability_one_is_complete() -> None:
    assert network("erdos-renyi", 7, p=1).links(1) == network("complete", 7).links(1)


@pytest.mark.parametrize("name", RANDOM)
@pytest.mark.parametrize("num_peers", [5, 16, 60])
def test_a_random_graph_is_the_same_from_the_same_seed_alone(name: str, num_peers: int) -> None:
    first, again, other = (
        PeerNetwork(name=name, num_peers=num_peers, seed=seed) for seed in (3, 3, 4)
    )

    assert first.facts(1).connected
    assert first.links(1) == again.links(1)
    if num_peers > 5:  # so few have few graphs
        assert first.links(1) != other.links(1)


@pytest.mark.parametrize("num_peers", [2, 3, 5, 8, 12])
def test_on_a_one_peer_graph_everybody_speaks_to_one_and_hears_one(num_peers: int) -> None:
    made = network("one-peer-exponential", num_peers)
    period = math.ceil(math.log2(num_peers))

    for server_round in range(1, 2 * period + 1):
        away = 2 ** ((server_round - 1) % period)
        assert made.edges(server_round) == tuple(
            (peer, (peer + away) % num_peers) for peer in range(num_peers)
        )
    assert made.varies
    assert made.directed


@pytest.mark.parametrize(
    ("name", "num_peers", "options", "said"),
    [
        ("rign", 4, {}, "did you mean 'ring'?"),
        ("ring", 1, {}, "at least 2 peers, got 1; raise partition.clients"),
        ("ring", 4, {"degree": 3}, "topology.options: unknown option 'degree'"),
        ("torus", 8, {}, "rows and columns of at least 3; take 9 of them"),
        ("torus", 14, {}, "take 12 or 15 of them"),
        ("torus", 12, {"rows": 2}, "rows and columns must be at least 3, got 2 rows of 6"),
        ("grid", 7, {}, "rows and columns of at least 2; take 6 or 8 of them"),
        ("grid", 12, {"rows": 5}, "12 peers do not fill 5 rows"),
        ("grid", 12, {"columns": 5}, "12 peers do not fill rows of 5"),
        ("grid", 12, {"rows": 5, "columns": 2}, "5 rows of 2 are 10 peers, but there are 12"),
        ("grid", 12, {"rows": 13}, "12 peers do not fill 13 rows"),
        ("hypercube", 12, {}, "a power of two of peers, such as 8 or 16, got 12"),
        ("tree", 5, {"branching": 0}, "topology.options.branching"),
        ("watts-strogatz", 8, {"k": 3}, "k must be even and less than the 8 peers, got 3"),
        ("watts-strogatz", 4, {}, "k must be even and less than the 4 peers, got 4"),
        ("erdos-renyi", 40, {"p": 0.01}, "none of 100 graphs drawn was connected; raise p"),
        ("random-regular", 5, {"degree": 3}, "degree must be even for an odd number of peers"),
        ("random-regular", 4, {}, "degree must be less than the 4 peers, got 4"),
        ("random-regular", 8, {"degree": 1}, "raise degree"),
        ("edges", 4, {}, "topology.options.path is required"),
    ],
)
def test_what_cannot_be_is_refused_with_what_to_do(
    name: str, num_peers: int, options: dict[str, object], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        network(name, num_peers, **options)

    assert said in str(refused.value)


@pytest.fixture
def links_file(tmp_path: Path) -> Path:
    return tmp_path / "links.txt"


def test_a_file_lists_links_with_comments_commas_and_empty_lines(links_file: Path) -> None:
    links_file.write_text("# a ring and a tail\n0 1\n1,2\n\n2 0  # closed\n 3,\t2\n1 0\n")

    made = network("edges", 4, path=str(links_file))

    assert made.links(1) == ((0, 1), (0, 2), (1, 2), (2, 3))
    assert not made.directed


def test_a_directed_file_leads_one_way(links_file: Path) -> None:
    links_file.write_text("0 1\n1 2\n2 0\n")

    made = network("edges", 3, path=str(links_file), directed=True)

    assert made.links(1) == made.edges(1) == ((0, 1), (1, 2), (2, 0))
    assert made.senders(1, 0) == (2,)
    assert made.receivers(1, 0) == (1,)


@pytest.mark.parametrize(
    ("text", "directed", "said"),
    [
        ("0 1\n1 x\n", False, "links.txt, line 2: expected two peers, as '0 1', got '1 x'"),
        ("0 1 2\n", False, "line 1: expected two peers, as '0 1', got '0 1 2'"),
        ("0 -1\n", False, "line 1: expected two peers"),
        ("# three\n0 3\n", False, "line 2: peers are numbered from 0 to 2, got 3"),
        ("1 1\n", False, "line 1: peer 1 is linked to itself"),
        ("0 1\n", False, "not connected: nothing that peer 0 says ever comes to peer 2"),
        ("0 1\n1 2\n", True, "not connected: nothing that peer 1 says ever comes to peer 0"),
    ],
)
def test_a_file_that_is_no_graph_is_refused_with_its_line(
    links_file: Path, text: str, directed: bool, said: str
) -> None:
    links_file.write_text(text)

    with pytest.raises(ConfigError) as refused:
        network("edges", 3, path=str(links_file), directed=directed)

    assert said in str(refused.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.txt: cannot be read"):
        network("edges", 3, path="nowhere.txt")
