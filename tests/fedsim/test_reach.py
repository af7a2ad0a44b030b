"""Where an adversary among peers sits, as the records of a run tell it."""

from typing import Any

import pytest

from fedsim.reach import Reach, number_of, reach_of
from fedsim.records import RunDirectory
from fedsim.topologies.network import PeerNetwork


def reach(name: str, num_peers: int, *, rounds: Any = (), **threat: Any) -> Reach:
    """An adversary in a shipped topology."""
    network = PeerNetwork(name=name, num_peers=num_peers)
    return Reach(
        topology=network.record(), threat={"peers": [], "links": [], **threat}, rounds=rounds
    )


def test_a_neighbour_is_one_link_away_and_counts_to_the_far_side_of_a_ring() -> None:
    found = reach("ring", 9, peers=[0]).distances(1)

    assert found == {0: 0, 1: 1, 8: 1, 2: 2, 7: 2, 3: 3, 6: 3, 4: 4, 5: 4}


def test_a_coalition_is_as_near_as_the_nearest_of_its_peers() -> None:
    found = reach("line", 7, peers=[0, 5]).distances(1)

    assert [found[peer] for peer in range(7)] == [0, 1, 2, 2, 1, 0, 1]


def test_a_tap_hears_both_ends_at_the_source_and_one_end_where_it_hears_one_direction() -> None:
    both = reach("line", 5, links=[[1, 2], [2, 1]])
    one = reach("line", 5, links=[[1, 2]])

    assert [both.distances(1)[peer] for peer in range(5)] == [1, 0, 0, 1, 2]
    assert [one.distances(1)[peer] for peer in range(5)] == [1, 0, 1, 2, 3]
    assert both.heard(1) == one.heard(1) == [(1, 2)]


def test_before_a_relay_everybody_is_heard_at_the_source() -> None:
    found = reach("torus", 9, links="all")

    assert set(found.distances(1).values()) == {0}
    assert len(found.heard(1)) == len(found.links(1)) == 18


def test_a_neighbour_hears_the_links_at_its_own_peers_and_no_others() -> None:
    assert reach("ring", 9, peers=[0]).heard(1) == [(0, 1), (0, 8)]
    assert len(reach("complete", 9, peers=[3]).heard(1)) == 8


def test_distance_counts_along_the_way_that_messages_go() -> None:
    """On one-peer exponential graphs, every peer speaks to one other; who it is changes."""
    rounds = [
        {"round": 1, "clients": [0], "links": [[0, 1], [1, 2], [2, 3], [3, 0]]},
        {"round": 2, "clients": [0], "links": [[0, 2], [1, 3], [2, 0], [3, 1]]},
    ]
    found = reach("one-peer-exponential", 4, peers=[0], rounds=rounds)

    assert found.distances(1) == {0: 0, 3: 1, 2: 2, 1: 3}
    assert found.distances(2) == {0: 0, 2: 1}  # nothing of 1 and 3 comes here in this round


def test_rows_and_columns_of_a_lattice_are_told_to_who_draws_it() -> None:
    assert reach("torus", 12, peers=[0]).graph(1).graph["lattice"] == (3, 4)


def test_a_run_says_which_peers_and_rounds_its_adversary_is_after(
    made_among_peers: RunDirectory,
) -> None:
    found = reach_of(made_among_peers)

    assert found is not None
    assert found.victims == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [one["round"] for one in found.listened()] == [1, 2, 3]


def test_a_run_with_a_server_has_no_such_place(made_once: RunDirectory) -> None:
    assert reach_of(made_once) is None


@pytest.mark.parametrize(("name", "number"), [("client-3", 3), ("client-12", 12)])
def test_the_number_of_a_client_is_in_its_name(name: str, number: int) -> None:
    assert number_of(name) == number
