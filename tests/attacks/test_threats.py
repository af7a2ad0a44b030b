import importlib

import pytest

from attacks import ATTACKS
from attacks.threats import (
    ACTIVE,
    CURIOUS_SERVER,
    LINK_TAP,
    MALICIOUS_AGGREGATE_SERVER,
    MALICIOUS_SERVER,
    THREATS,
    UPLINK_TAP,
    Capability,
    Position,
    ThreatModel,
)


def test_what_is_not_granted_is_missing_in_a_fixed_order() -> None:
    needs = frozenset({Capability.LABELS, Capability.WEIGHTS, Capability.ARCHITECTURE})

    assert UPLINK_TAP.missing(needs) == [Capability.WEIGHTS, Capability.LABELS]
    assert CURIOUS_SERVER.missing(needs) == [Capability.LABELS]
    assert CURIOUS_SERVER.missing(frozenset()) == []


def test_added_grants_show_in_the_name_and_leave_the_original_alone() -> None:
    informed = UPLINK_TAP.with_grants(frozenset({Capability.LABELS, Capability.WEIGHTS}))

    assert informed.name == "uplink-tap+weights+labels"
    assert informed.grants == UPLINK_TAP.grants | {Capability.LABELS, Capability.WEIGHTS}
    assert informed.position is UPLINK_TAP.position
    assert Capability.LABELS not in UPLINK_TAP.grants


def test_grants_that_are_there_already_change_nothing() -> None:
    assert CURIOUS_SERVER.with_grants(frozenset({Capability.WEIGHTS})) is CURIOUS_SERVER


@pytest.mark.parametrize("threat", THREATS.values(), ids=str)
def test_shipped_adversaries_know_no_labels_and_are_active_by_name(threat: ThreatModel) -> None:
    assert threat.active == threat.name.startswith(("malicious-", "active-"))
    assert not threat.oracle
    assert threat.summary
    assert threat.hears_sum == ("aggregate" in threat.name)


@pytest.mark.parametrize("malicious", [MALICIOUS_SERVER, MALICIOUS_AGGREGATE_SERVER])
def test_a_malicious_server_has_all_that_a_curious_one_has(malicious: ThreatModel) -> None:
    assert malicious.grants - CURIOUS_SERVER.grants == ACTIVE
    assert malicious.grants > CURIOUS_SERVER.grants


def test_being_told_the_labels_makes_an_oracle() -> None:
    assert LINK_TAP.with_grants(frozenset({Capability.LABELS})).oracle


@pytest.mark.parametrize("change", [Capability.CHANGE_WEIGHTS, Capability.CHANGE_ARCHITECTURE])
def test_changing_what_is_sent_makes_it_active(change: Capability) -> None:
    threat = ThreatModel(
        name="malicious",
        position=Position.SERVER,
        grants=frozenset({change}),
        summary="sends what it likes",
    )

    assert threat.active


def test_a_tap_on_the_uplink_hears_no_weights() -> None:
    assert Capability.WEIGHTS not in UPLINK_TAP.grants
    assert Capability.WEIGHTS in LINK_TAP.grants


def test_threats_are_found_under_their_own_names() -> None:
    assert all(name == threat.name for name, threat in THREATS.items())


@pytest.mark.parametrize("name", ["linear", "closed-form", "label"])
def test_exact_attacks_are_within_reach_of_a_curious_server(name: str) -> None:
    module, _, attribute = ATTACKS[name].partition(":")
    attack = getattr(importlib.import_module(module), attribute)()

    assert CURIOUS_SERVER.missing(attack.needs) == []
