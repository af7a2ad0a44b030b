"""What each adversary hears of each defense: by what it was told, message by message.

A defense at the client changes what every ear hears; one at the server changes what no ear hears;
one on the wire depends on where the ear is.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attacks.observation import Kind, Observation
from fedsim import driver
from fedsim.config import parse_experiment
from fedsim.defenses import DEFENSES, Place, build_chain
from fedsim.records import EVERYBODY, RunDirectory

EXPERIMENT = """
name = "places"
rounds = 1
[model]
name = "mlp"
options = {{hidden = [16]}}
[partition]
clients = 3
[training]
batch_size = 4
[adversary]
threat = "{threat}"
{defenses}
"""
SETTINGS = {
    "gaussian-noise": "scale = 0.1",
    "laplacian-noise": "scale = 0.1",
    "clip": "norm = 1e-3",
    "prune": "share = 0.5",
    "random-mask": "share = 0.5",
    "partial-sharing": "",
}
PLACES = ("curious-server", "link-tap", "uplink-tap")

Hear = Callable[..., dict[str, Observation]]


@pytest.fixture(scope="module")
def hear(tmp_path_factory: pytest.TempPathFactory) -> Hear:
    """Run one round under a defense, and return what was heard, by sender; each only once."""
    heard: dict[tuple[str, str], dict[str, Observation]] = {}

    def under(threat: str, defense: str = "", options: str = "") -> dict[str, Observation]:
        key = (threat, defense + options)
        if key not in heard:
            chain = f'[[defenses]]\nname = "{defense}"\noptions = {{{options}}}' if defense else ""
            text = EXPERIMENT.format(threat=threat, defenses=chain)
            out = f"output.directory={tmp_path_factory.mktemp('runs')}"
            run = RunDirectory(driver.run(parse_experiment(text, overrides=[out])).directory)
            seen = [run.read_observation(one["id"]) for one in run.observation_records()]
            heard[key] = {one.sender: one for one in seen}
        return heard[key]

    return under


def same(one: Observation, other: Observation) -> bool:
    return one.update.keys() == other.update.keys() and all(
        torch.equal(tensor, other.update[name]) for name, tensor in one.update.items()
    )


AT_THE_CLIENT = [
    name
    for name in DEFENSES
    if build_chain(parse_experiment(f'name = "x"\n[[defenses]]\nname = "{name}"'))[name].place
    in (Place.TRAINING, Place.UPDATE)
]


@pytest.mark.parametrize("defense", AT_THE_CLIENT)
def test_who_hears_a_client_hears_it_defended_wherever_it_listens(defense: str, hear: Hear) -> None:
    options = SETTINGS.get(defense, "")
    bare = hear("curious-server")
    views = [hear(threat, defense, options) for threat in PLACES]
    for view in views[1:]:
        assert all(same(view[sender], views[0][sender]) for sender in bare)
    assert not any(same(views[0][sender], bare[sender]) for sender in bare)


@pytest.mark.parametrize("threat", PLACES)
def test_differential_privacy_at_the_server_hides_nothing_from_who_hears_clients(
    threat: str, hear: Hear
) -> None:
    bare, defended = hear(threat), hear(threat, "central-dp")
    assert bare.keys() == defended.keys()
    assert all(same(defended[sender], bare[sender]) for sender in bare)


@pytest.mark.parametrize("threat", ["link-tap", "uplink-tap"])
def test_tls_leaves_a_tap_the_size_of_a_message_and_nothing_else(threat: str, hear: Hear) -> None:
    for seen in hear(threat, "tls").values():
        assert seen.kind is Kind.SIZES_ONLY
        assert seen.num_bytes is not None
        numbers = 64 * 16 + 16 + 16 * 10 + 10
        assert 4 * numbers < seen.num_bytes < 4 * numbers + 2_000
        assert not seen.update
        for part in ("weights", "buffers", "buffers_after", "num_examples"):
            assert getattr(seen, part) is None


def test_tls_hides_nothing_from_the_server_at_its_end(hear: Hear) -> None:
    bare, defended = hear("curious-server"), hear("curious-server", "tls")
    assert all(same(defended[sender], bare[sender]) for sender in bare)


def test_secure_aggregation_leaves_the_server_the_mean_and_shares_that_look_random(
    hear: Hear,
) -> None:
    bare = hear("curious-server")
    defended = dict(hear("curious-server", "secure-aggregation"))
    mean = defended.pop(EVERYBODY)
    assert mean.kind is Kind.AGGREGATE
    for name, tensor in mean.update.items():  # clients have four examples each
        expected = torch.stack([one.update[name] for one in bare.values()]).mean(dim=0)
        assert torch.allclose(tensor, expected, atol=1e-4)
    assert defended.keys() == bare.keys()
    for sender, share in defended.items():
        assert share.kind is Kind.MASKED_SHARE
        heard = torch.cat([tensor.flatten().double() for tensor in share.update.values()])
        private = torch.cat([tensor.flatten().double() for tensor in bare[sender].update.values()])
        together = torch.corrcoef(torch.stack([heard, private]))[0, 1]
        assert abs(float(together)) < 5 / len(heard) ** 0.5


def test_secure_aggregation_leaves_a_tap_the_shares_without_the_mean(hear: Hear) -> None:
    views = hear("link-tap", "secure-aggregation")
    assert {one.kind for one in views.values()} == {Kind.MASKED_SHARE}


def test_an_altered_model_is_what_everybody_hears_the_gradient_of(hear: Hear) -> None:
    bare, defended = hear("curious-server"), hear("curious-server", "precode")
    assert len(defended["client-0"].update) > len(bare["client-0"].update)


def test_a_view_that_holds_sizes_alone_is_kept_and_attacked_like_any_other(tmp_path: Path) -> None:
    chain = '[[defenses]]\nname = "tls"\n[[attacks]]\nname = "auto"\n[[attacks]]\nname = "idlg"'
    text = EXPERIMENT.format(threat="link-tap", defenses=chain)
    result = driver.run(parse_experiment(text, overrides=[f"output.directory={tmp_path}"]))
    assert {row["failed"] for row in result.summary["leakage"]} == {3}
    assert not [event for event in result.events if event["kind"] == "attack-crashed"]
