import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from attacks.adaptive import Adaptive
from attacks.auto import Auto
from attacks.defense import Untold
from attacks.idlg import IDLG
from attacks.linear import LinearInversion
from attacks.observation import AttackFailed, Budget, Knowledge
from attacks.threats import WHITE_BOX, Capability
from fedsim.driver import run
from fedsim.records import RunDirectory

from .defended import (
    KnownClip,
    KnownNoise,
    gradient_heard,
    mlp,
    noisy,
    pruned,
    psnr_db,
    shortened,
)
from .local_client import images


@pytest.fixture
def image() -> Tensor:
    return images(1)


def test_what_clipping_left_is_solved_as_if_it_had_not_been_clipped(
    image: Tensor, rng: torch.Generator
) -> None:
    seen, known = gradient_heard(image, 3)
    sent = shortened(seen, 0.01)

    found = Adaptive()(sent, replace(known, defenses=(KnownClip(),)), rng=rng)

    assert psnr_db(found.inputs, image) > 40
    assert "restored" in str(found.notes["length"])


def test_what_pruning_left_out_is_left_out(image: Tensor, rng: torch.Generator) -> None:
    seen, known = gradient_heard(image, 3)
    sent, defense = pruned(seen, 0.3)

    plain = IDLG(restarts=1, steps=100)(sent, known, rng=rng)
    adaptive = Adaptive()(sent, replace(known, defenses=(defense,)), rng=rng)

    assert psnr_db(adaptive.inputs, image) > psnr_db(plain.inputs, image) + 5
    assert "70" in str(adaptive.notes["survive"])


def test_behind_noise_the_likeliest_image_is_looked_for(
    image: Tensor, rng: torch.Generator
) -> None:
    seen, known = gradient_heard(image, 3)
    known = replace(known, defenses=(KnownNoise(deviation=0.05),))

    found = Adaptive()(noisy(seen, 0.05), known, rng=rng)

    assert found.notes["chosen"] == "bayesian"
    assert found.notes["explained"] == "yes"
    assert found.notes["noise_read"] == pytest.approx(0.05)


def test_where_the_known_noise_explains_no_guess_the_plain_search_has_its_turn(
    image: Tensor, rng: torch.Generator
) -> None:
    seen, known = gradient_heard(image, 3)
    sent, told = noisy(seen, 0.05), KnownNoise(deviation=0.01)

    found = Adaptive()(sent, replace(known, defenses=(told,)), rng=rng)

    tried = [line.split(":")[0] for line in str(found.notes["tried"]).split("; ")]
    assert tried.index("bayesian") < tried.index("idlg")
    assert found.notes["explained"] == "no"


def test_auto_reads_what_it_is_told_and_stops_at_what_the_noise_explains(
    image: Tensor, rng: torch.Generator
) -> None:
    seen, known = gradient_heard(image, 3)
    told = replace(known, defenses=(KnownNoise(deviation=0.05),))

    found = Auto()(noisy(seen, 0.05), told, rng=rng, budget=Budget(60))

    assert found.notes["chosen"] == "bayesian"
    assert found.notes["read"] == "KnownNoise"
    assert "idlg" not in str(found.notes["tried"])
    assert found.finished


def test_exact_guesses_at_noisy_rounds_are_averaged(image: Tensor, rng: torch.Generator) -> None:
    seen, known = gradient_heard(image, 3, mlp())
    known = replace(known, defenses=(KnownNoise(deviation=0.01),))
    rounds = [noisy(seen, 0.01, seed=k) for k in range(9)]
    attack = Adaptive(inner="linear")

    alone, together = attack(rounds[0], known, rng=rng), attack(rounds, known, rng=rng)

    gain = psnr_db(together.inputs, image) - psnr_db(alone.inputs, image)
    assert together.notes["averaged"] == 9
    assert gain == pytest.approx(10 * math.log10(9), abs=2)


def test_an_inner_attack_that_compares_lengths_is_replaced_where_they_mean_nothing(
    rng: torch.Generator,
) -> None:
    seen, known = gradient_heard(images(1), 3)
    headless = replace(seen, update={n: t for n, t in seen.update.items() if n != "5.weight"})
    known = replace(known, defenses=(KnownClip(),))

    found = Adaptive(inner="idlg")(headless, known, rng=rng, budget=Budget(0.2))

    assert "inverting-gradients" in str(found.notes["inner"])


def test_it_needs_to_know_the_defense() -> None:
    assert Adaptive().needs == WHITE_BOX | {Capability.DEFENSE}
    assert Adaptive(inner="linear").needs == LinearInversion().needs | {Capability.DEFENSE}


def test_names_alone_are_noted_as_estimates(image: Tensor, rng: torch.Generator) -> None:
    seen, known = gradient_heard(image, 3, mlp())
    known = replace(known, defenses=(Untold(defense=KnownNoise(deviation=0.01)),))

    found = Adaptive(inner="linear")(seen, known, rng=rng)

    assert found.notes["read"] == "KnownNoise (estimated)"


def test_settings_without_meaning_are_refused(rng: torch.Generator) -> None:
    with pytest.raises(ValueError, match="another attack"):
        Adaptive(inner="adaptive")
    with pytest.raises(ValueError, match="name it"):
        Adaptive(options={"steps": 3})
    with pytest.raises(ValueError, match="unknown attack"):
        Adaptive(inner="nothing")
    with pytest.raises(AttackFailed, match="nothing was heard"):
        Adaptive()([], Knowledge(), rng=rng)


@pytest.mark.parametrize("deviation", [1e-5, 1e-3])
def test_noise_lowers_what_a_first_linear_layer_leaks_by_the_law(
    deviation: float, tmp_path: Path
) -> None:
    config = tmp_path / "law.toml"
    config.write_text(LAW.format(scale=deviation, directory=tmp_path / "runs"))

    result = run(config)

    (score,) = result.scores
    (image,) = score["images"]
    expected = -20 * math.log10(deviation / bias_gradient_length(result.directory))
    assert image["psnr_db"] == pytest.approx(expected, abs=2)


LAW = """
name = "law"
seed = 0
rounds = 1

[data]
name = "digits"

[model]
name = "mlp"
options = {{ hidden = [256] }}

[partition]
name = "iid"
clients = 4

[training]
algorithm = "fedsgd"
batch_size = 1
learning_rate = 0.1

[[defenses]]
name = "gaussian-noise"
options = {{ scale = {scale} }}

[adversary]
threat = "curious-server"
grants = ["defense"]
rounds = [1]
victims = [0]

[[attacks]]
name = "adaptive"
options = {{ inner = "linear" }}

[output]
directory = "{directory}"
"""


def bias_gradient_length(directory: Path) -> float:
    """Return the length of the first bias's gradient as the server heard it."""
    found = RunDirectory(directory)
    (record,) = found.observation_records()
    update = found.read_observation(record["id"]).update
    return next(float(its.norm()) for its in update.values() if its.shape == (256,))
