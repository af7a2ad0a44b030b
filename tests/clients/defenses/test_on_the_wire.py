"""Runs under compression: fewer bytes, the same values heard, gone on with, and still learning."""

from pathlib import Path

import pytest
import torch

from attacks.observation import Knowledge
from clients.app import app
from fedsim.config import parse_experiment
from fedsim.defenses import known_defenses
from fedsim.engines.in_process import InProcessGrid
from fedsim.files import digest, read_tensors
from fedsim.records import RunDirectory
from server.rounds import train

TINY = """
name = "tiny"
rounds = {rounds}
partition = {{ clients = 2 }}
model = {{ name = "mlp", options = {{ hidden = [32] }} }}
training = {{ batch_size = 8, learning_rate = 0.5 }}
adversary = {{ grants = ["defense"] }}
{defense}
"""


def chain(name: str, options: str = "{}") -> str:
    return f'[[defenses]]\nname = "{name}"\noptions = {options}\n'


def run(
    tmp_path: Path, defense: str = "", *, rounds: int = 1, text: str = TINY, **values: object
) -> RunDirectory:
    """Train, without the stages that come after it."""
    experiment = parse_experiment(text.format(rounds=rounds, defense=defense, **values))
    found = RunDirectory.create(tmp_path, "run")
    train(experiment, found, InProcessGrid(experiment, found, app))
    return found


def bytes_up(found: RunDirectory) -> int:
    total = found.rounds()[-1]["bytes_up"]
    assert isinstance(total, int)
    return total


def test_the_bytes_of_a_round_are_those_of_what_is_left_to_say(tmp_path: Path) -> None:
    values = 64 * 32 + 32 + 32 * 10 + 10
    whole = bytes_up(run(tmp_path))
    assert whole > 2 * 4 * values  # two clients, and headers
    assert bytes_up(run(tmp_path, chain("clip"))) < 2 * 4 * values + 2 * 4 * 2
    assert bytes_up(run(tmp_path, chain("fp16"))) < 0.55 * whole
    # a tenth of the values, with gaps of less than a byte
    assert bytes_up(run(tmp_path, chain("prune", "{share = 0.9}"))) < 0.13 * whole
    assert bytes_up(run(tmp_path, chain("sign"))) < 2 / 32 * whole  # some gradients are zero


@pytest.mark.parametrize("threat", ["curious-server", "link-tap"])
def test_who_listens_hears_the_values_that_were_packed(threat: str, tmp_path: Path) -> None:
    text = TINY.replace("adversary = {{", f'adversary = {{{{ threat = "{threat}",')
    found = run(tmp_path, chain("sign"), text=text)
    plain = run(tmp_path, text=text)
    for record, other in zip(found.observation_records(), plain.observation_records(), strict=True):
        seen = found.read_observation(record["id"])
        gradient = plain.read_observation(other["id"]).update
        for name, tensor in seen.update.items():
            expected = gradient[name].sign() * gradient[name].double().abs().mean().float()
            assert torch.equal(tensor, expected)
            assert tensor.dtype == torch.float32


def test_new_weights_travel_whole_and_a_change_of_weights_does_not(tmp_path: Path) -> None:
    prune = chain("prune", "{share = 0.9}")
    sizes = {}
    for returns in ("weights", "delta"):
        local = (
            f'training = {{{{ algorithm = "fedavg", returns = "{returns}", max_local_steps = 1, '
        )
        sizes[returns] = bytes_up(run(tmp_path, prune, text=TINY.replace("training = {{", local)))
    assert sizes["delta"] < 0.15 * sizes["weights"]


@pytest.mark.parametrize(
    "defense",
    [
        chain("dgc", "{share = 0.9, warmup_rounds = 1}"),
        chain("random-mask", "{fixed = true}") + chain("qsgd", "{error_feedback = true}"),
    ],
    ids=["dgc", "mask and qsgd"],
)
def test_a_run_that_is_gone_on_with_has_the_bits_of_one_that_was_not_broken_off(
    defense: str, tmp_path: Path
) -> None:
    ends = []
    for parts in ((4,), (2, 4)):
        found = RunDirectory.create(tmp_path, f"parts-{len(parts)}")
        for rounds in parts:
            tiny = parse_experiment(TINY.format(rounds=rounds, defense=defense))
            train(tiny, found, InProcessGrid(tiny, found, app))
        ends.append((digest(read_tensors(found.checkpoint)[0]), found.views_sha256()))
    assert ends[0] == ends[1]


@pytest.mark.parametrize(
    "name", ["fp16", "int8", "qsgd", "sign", "prune", "random-mask", "dgc", "partial-sharing"]
)
def test_an_adversary_reads_what_a_run_sent_whether_it_is_told_settings_or_names(
    name: str, tmp_path: Path
) -> None:
    found = run(tmp_path, chain(name))
    seen = found.read_observation(found.observation_records()[0]["id"])
    both: list[dict[str, object]] = [{"options": {}}, {"options": None}]
    for told in both:
        (known,) = known_defenses([{"name": name, "label": "", **told}])
        after, better = known.read(seen, Knowledge())
        changed = (
            after.visible is not None
            or better.noise is not None
            or after.update.keys() != seen.update.keys()
        )
        assert changed


LEARNING = """
name = "learning"
rounds = 60
partition = {{ clients = 5 }}
model = {{ name = "mlp", options = {{ hidden = [32] }} }}
training = {{ batch_size = 32, learning_rate = {rate} }}
server = {{ evaluate_every = 60 }}
adversary = {{ rounds = [] }}
{defense}
"""


def accuracy(tmp_path: Path, defense: str, rate: float = 0.5) -> float:
    found = run(tmp_path, defense, text=LEARNING, rate=rate)
    return float(found.rounds()[-1]["accuracy"])


@pytest.mark.slow
def test_what_is_compressed_well_learns_nearly_as_well_as_what_is_not(tmp_path: Path) -> None:
    plain = accuracy(tmp_path, "")
    assert plain > 0.9
    for defense, rate in [
        (chain("qsgd", "{levels = 4, bucket = 128}"), 0.5),
        (chain("qsgd", "{error_feedback = true}"), 0.5),
        (chain("int8"), 0.5),
        (chain("sign", "{error_feedback = true}"), 0.5),
        (chain("prune", "{share = 0.99, error_feedback = true}"), 0.5),
        # with momentum, the same total step; coordinates wait for up to 100 of the 60 rounds
        (chain("dgc", "{share = 0.99, momentum = 0.5}"), 0.25),
    ]:
        assert accuracy(tmp_path, defense, rate) > plain - 0.04, defense


@pytest.mark.slow
def test_without_feedback_hard_pruning_does_not_learn(tmp_path: Path) -> None:
    assert accuracy(tmp_path, chain("prune", "{share = 0.99}")) < 0.6  # 0.9 with feedback
