"""What the summary says of a run without a server."""

from statistics import median

from fedsim.files import Record, read_json
from fedsim.reach import Reach, reach_of
from fedsim.records import RunDirectory
from fedsim.schemas.summary import Summary
from fedsim.stages.among_peers import by_distance, isolation


def reach_in(run: RunDirectory) -> Reach:
    """Return where the adversary sat."""
    found = reach_of(run)
    assert found is not None
    return found


def test_the_summary_of_a_run_with_a_server_says_nothing_of_peers(made_once: RunDirectory) -> None:
    assert read_json(made_once.summary)["peers"] is None


def test_the_summary_names_topology_protocol_consensus_and_traffic(
    made_among_peers: RunDirectory,
) -> None:
    found = Summary.model_validate(read_json(made_among_peers.summary)).peers

    assert found is not None
    assert (found.topology, found.protocol) == ("ring", "d-psgd")
    assert found.consensus_distance == 1.5  # of the last of three rounds
    assert (found.messages, found.bytes_between) == (3 * 18, 3 * 9000)
    assert found.hears == 2 / 9
    assert found.peer_accuracy is not None
    assert found.peer_accuracy.best > found.peer_accuracy.worst


def test_every_update_is_counted_once_at_its_distance(made_among_peers: RunDirectory) -> None:
    scores = made_among_peers.scores()
    rows = by_distance(reach_in(made_among_peers), made_among_peers.observation_records(), scores)

    assert [row.distance for row in rows] == [1, 2, 3, 4]
    assert [row.peers for row in rows] == [2, 2, 2, 2]
    assert [row.updates for row in rows] == [6, 6, 6, 6]  # two peers in three rounds
    assert [row.attacked for row in rows] == [6, 3, 0, 3]  # of 1 and 8; of 2; of nobody; of 4
    assert rows[0].isolated == {"exact": 2, "estimated": 4}
    assert rows[2].isolated == {}
    values = [
        image["psnr_db"]
        for score in scores
        if score["victim"] == "client-2"
        for image in score["images"]
    ]
    assert rows[1].psnr_db is not None
    assert rows[1].psnr_db.median == median(values)
    assert sum(row.num_images for row in rows) == 4 * 3 * 2
    assert sum(row.num_recovered for row in rows) == sum(
        image["recovered"] for score in scores for image in score["images"]
    )


def test_rounds_in_which_nobody_listened_count_for_nothing(made_among_peers: RunDirectory) -> None:
    whole = reach_in(made_among_peers)
    once = Reach(
        topology=whole.topology,
        threat=whole.threat,
        rounds=whole.rounds,
        listens=frozenset({1}),
        wanted=frozenset({1}),
    )

    (row,) = by_distance(once, made_among_peers.observation_records(), made_among_peers.scores())

    assert (row.distance, row.peers, row.updates, row.attacked) == (1, 1, 1, 1)


def test_attacks_on_labels_alone_have_no_row(made_among_peers: RunDirectory) -> None:
    scores = [one | {"images": []} for one in made_among_peers.scores()]

    assert by_distance(reach_in(made_among_peers), [], scores) == []


def test_errors_of_isolation_stand_beside_what_was_expected() -> None:
    observations: list[Record] = [
        {"id": "a", "isolated": "exact", "expected_error": 1e-7},
        {"id": "b", "isolated": "estimated", "expected_error": 0.2},
        {"id": "c", "isolated": "estimated", "expected_error": 0.4},
        {"id": "d", "isolated": None},
    ]
    scores: list[Record] = [
        {"observation": "b", "update_error": 0.3, "weights_error": None},
        {"observation": "c", "update_error": 0.1, "weights_error": 0.01},
    ]

    heard, exact, estimated = isolation(observations, scores)

    assert (heard.how, heard.updates, heard.expected_error) == ("heard", 1, None)
    assert (exact.how, exact.updates, exact.update_error) == ("exact", 1, None)
    assert estimated.expected_error is not None
    assert estimated.update_error is not None
    assert estimated.weights_error is not None
    assert round(estimated.expected_error.median, 12) == 0.3
    assert (estimated.update_error.best, estimated.update_error.worst) == (0.1, 0.3)
    assert estimated.weights_error.median == 0.01


def test_what_is_taken_for_certain_and_wrong_is_counted() -> None:
    observations: list[Record] = [
        {"id": "a", "isolated": "exact", "expected_error": 1e-7},
        {"id": "b", "isolated": "exact", "expected_error": 1e-7},
        {"id": "c", "isolated": "exact", "expected_error": 0.1},  # mostly rounding, and it says so
        {"id": "d", "isolated": "exact", "expected_error": 1e-7},  # of no attack
        {"id": "e", "isolated": "estimated", "expected_error": 0.1},
    ]
    scores: list[Record] = [
        {"observation": "a", "update_error": 0.4},
        {"observation": "b", "update_error": 1e-6},
        {"observation": "c", "update_error": 0.3},
        {"observation": "e", "update_error": 3.0},
    ]

    assert {one.how: one.mistaken for one in isolation(observations, scores)} == {
        "exact": 1,
        "estimated": 0,
    }
