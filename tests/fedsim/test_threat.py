"""The threat model of an experiment."""

import pytest

from attacks.threats import THREATS, Capability, ThreatModel
from fedsim.config import Experiment, parse_experiment
from fedsim.errors import ConfigError
from fedsim.threat import MEANING, check_links, places_of, threat_of, threat_record
from fedsim.topologies.build import network_of


def test_every_capability_has_a_meaning() -> None:
    assert set(MEANING) == set(Capability)


def test_grants_are_added_to_the_threat_and_show_in_its_name() -> None:
    plain = threat_of(parse_experiment('name = "x"'))
    told = threat_of(parse_experiment('name = "x"\n[adversary]\ngrants = ["labels", "weights"]'))

    assert plain == THREATS["curious-server"]
    assert not plain.oracle
    assert told.name == "curious-server+labels"  # it had the weights before
    assert told.oracle
    assert told.grants - plain.grants == {Capability.LABELS}


def test_an_unknown_threat_is_refused_with_the_nearest() -> None:
    said = r"adversary.threat: unknown threat 'link-tab'; did you mean 'link-tap'\?"
    with pytest.raises(ConfigError, match=said):
        threat_of(parse_experiment('name = "x"\n[adversary]\nthreat = "link-tab"'))


def test_the_record_lists_what_is_granted_and_nothing_else() -> None:
    record = threat_record(THREATS["uplink-tap"])

    assert (record["name"], record["position"]) == ("uplink-tap", "link")
    assert (record["active"], record["oracle"], record["hears_sum"]) == (False, False, False)
    granted = [one["capability"] for one in record["grants"]]
    assert granted == ["architecture", "input-domain", "batch-size", "local-recipe", "topology"]


def adversary(settings: str, training: str = "") -> ThreatModel:
    return threat_of(parse_experiment(f'name = "x"\n[adversary]\n{settings}\n{training}'))


def test_who_only_listens_is_not_granted_to_change_what_is_sent() -> None:
    change = 'grants = ["change-weights"]'
    said = (
        "adversary.grants: 'change-weights' is for adversaries that change what is sent; "
        "'curious-server' only listens; there are 'malicious-server', "
        "'malicious-aggregate-server', 'active-neighbour'"
    )
    with pytest.raises(ConfigError, match=said):
        adversary(change)

    assert adversary(f'threat = "malicious-server"\n{change}').name == "malicious-server"


def test_who_hears_means_alone_is_not_asked_for_single_clients_or_several_steps() -> None:
    passive = 'threat = "aggregate-server"\n'
    with pytest.raises(ConfigError, match=r"victims must be 'all' .* hears no client alone"):
        adversary(passive + "victims = [1]")
    with pytest.raises(ConfigError, match=r"set training\.max_local_steps = 1"):
        adversary(passive, '[training]\nalgorithm = "fedavg"')

    assert adversary('threat = "malicious-aggregate-server"\nvictims = [1]').active
    one = '[training]\nalgorithm = "fedavg"\nmax_local_steps = 1'
    assert adversary(passive, one).hears_sum


def among_peers(settings: str) -> Experiment:
    return parse_experiment(
        f"""
        name = "x"
        partition = {{ clients = 4 }}
        topology = {{ name = "ring" }}
        protocol = {{ name = "d-psgd" }}
        adversary = {{ {settings} }}
        """
    )


def test_without_a_server_the_curious_server_is_the_relay() -> None:
    relay = threat_of(among_peers('threat = "curious-server", grants = ["labels"]'))

    assert relay == THREATS["relay"].with_grants(frozenset({Capability.LABELS}))
    assert places_of(among_peers('threat = "curious-server"')).links is None


@pytest.mark.parametrize("name", ["malicious-server", "aggregate-server"])
def test_without_a_server_nobody_sits_at_one(name: str) -> None:
    said = f"'{name}' sits at a server, which protocol 'd-psgd' does without; there are 'link-tap'"
    with pytest.raises(ConfigError, match=said):
        threat_of(among_peers(f'threat = "{name}"'))


@pytest.mark.parametrize("name", ["curious-neighbour", "coalition", "active-neighbour", "relay"])
def test_with_a_server_there_are_no_neighbours(name: str) -> None:
    with pytest.raises(ConfigError, match="is for peers that train without a server; set topology"):
        adversary(f'threat = "{name}"')


def test_running_statistics_stay_with_each_peer() -> None:
    tap = threat_of(among_peers('threat = "link-tap"'))

    assert Capability.BATCHNORM_STATISTICS not in tap.grants
    with pytest.raises(ConfigError, match="'batchnorm-statistics' stay with each peer"):
        threat_of(among_peers('grants = ["batchnorm-statistics"]'))


def test_an_adversary_sits_where_it_is_put_or_at_the_first_peers() -> None:
    assert places_of(among_peers('threat = "curious-neighbour"')).peers == (0,)
    assert places_of(among_peers('threat = "coalition"')).peers == (0, 1)
    assert places_of(among_peers('threat = "coalition", peers = [3, 1]')).peers == (1, 3)


def test_a_tap_hears_both_directions_of_its_links_or_one() -> None:
    tap = places_of(among_peers('threat = "link-tap", links = [[2, 1]]'))
    uplink = places_of(among_peers('threat = "uplink-tap", links = [[2, 1]], grants = ["weights"]'))

    assert tap.links == ((1, 2), (2, 1))
    assert uplink.links == ((2, 1),)
    assert places_of(among_peers('threat = "link-tap"')).hear(0, 2)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ('threat = "curious-neighbour", peers = [1, 2]', "must be exactly one peer"),
        ('threat = "coalition", peers = [1]', "at least two different peers"),
        ('threat = "coalition", peers = [1, 1]', "at least two different peers"),
        ('threat = "curious-neighbour", peers = [4]', "numbers from 0 to 3"),
        ('threat = "coalition", peers = [0, 1, 2, 3]', "none of all is a peer other"),
        ('threat = "curious-neighbour", victims = [0]', r"none of \[0\] is a peer other"),
        ('threat = "relay", peers = [1]', "adversary.peers is for adversaries that are peers"),
        ('threat = "curious-neighbour", links = [[0, 1]]', "adversary.links is for taps"),
        ('threat = "link-tap", links = []', "adversary.links must name at least one pair"),
    ],
)
def test_an_adversary_that_cannot_sit_there_is_refused(settings: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        places_of(among_peers(settings))


def test_what_is_no_link_is_not_tapped() -> None:
    tap = places_of(among_peers('threat = "link-tap", links = [[0, 2]]'))

    with pytest.raises(ConfigError, match="no link between peers 0 and 2 in this topology"):
        check_links(tap, network_of(among_peers("")).edges(1))


def test_the_record_says_where_an_adversary_sits() -> None:
    coalition, relay = (
        threat_record(threat_of(one), places_of(one))
        for one in (among_peers('threat = "coalition"'), among_peers('threat = "relay"'))
    )

    assert (coalition["peers"], coalition["links"]) == ([0, 1], [])
    assert (relay["peers"], relay["links"]) == ([], "all")
