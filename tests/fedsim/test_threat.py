"""The threat model of an experiment."""

import pytest

from attacks.threats import THREATS, Capability
from fedsim.config import parse_experiment
from fedsim.errors import ConfigError
from fedsim.threat import MEANING, threat_of, threat_record


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
    assert (record["active"], record["oracle"]) == (False, False)
    granted = [one["capability"] for one in record["grants"]]
    assert granted == ["architecture", "input-domain", "batch-size", "local-recipe"]
