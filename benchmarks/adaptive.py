"""What knowing the defense is worth: `adaptive` against `idlg`, which ignores it.

Test images of the digits, one per gradient, and the LeNet of DLG with fresh weights, image i with
seed i. Each attack has its defaults and no time limit; they take turns image by image.

    python -m benchmarks.adaptive --output benchmarks/results/adaptive.json
    python -m benchmarks.adaptive --markdown benchmarks/results/adaptive.json
"""

import argparse
import json
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from attacks.observation import Attack, AttackFailed
from benchmarks.dlg_cifar100 import environment
from benchmarks.victims import Victim, attack_named, data_mean_db, fresh_model, judge, overhear
from fedsim.config import DefenseConfig
from fedsim.data.load import load_data
from fedsim.defenses import Situation, UpdateDefense, build_defense
from fedsim.seeds import stream

DEFENSES: Mapping[str, tuple[str, Mapping[str, Any]] | None] = {
    "none": None,
    "Gaussian 0.0001": ("gaussian-noise", {"scale": 1e-4}),
    "Gaussian 0.001": ("gaussian-noise", {"scale": 1e-3}),
    "Gaussian 0.01": ("gaussian-noise", {"scale": 1e-2}),
    "Gaussian 0.1": ("gaussian-noise", {"scale": 1e-1}),
    "Laplacian 0.01": ("laplacian-noise", {"scale": 1e-2}),
    "prune 20 % of each layer": ("prune", {"share": 0.2}),
    "prune 50 % of each layer": ("prune", {"share": 0.5}),
    "prune 70 % of all": ("prune", {"share": 0.7, "scope": "global"}),
    "prune 90 % of all": ("prune", {"share": 0.9, "scope": "global"}),
    "int8": ("int8", {}),
    "signs": ("sign", {}),
    "clip at 0.1": ("clip", {"norm": 0.1}),
}
ATTACKS = ("idlg", "adaptive")


def victim_of(number: int, defense: tuple[str, Mapping[str, Any]] | None) -> Victim:
    """Return one digit and what is heard of it."""
    data = load_data("digits", root="", options={})
    inputs, labels = data.test_inputs[number : number + 1], data.test_labels[number : number + 1]
    model = fresh_model("dlg-lenet", number, shape=data.input_shape, num_classes=data.num_classes)
    victim = overhear(model, inputs, labels, number, train_mode=True)
    if defense is None:
        return victim
    one = build_defense(DefenseConfig(name=defense[0], options=dict(defense[1])))
    assert isinstance(one, UpdateDefense)
    assert victim.seen.weights is not None
    situation = Situation(
        kind="gradient",
        model=model,
        before=victim.seen.weights,
        loss=functional.cross_entropy,
        inputs=inputs,
        labels=labels,
        learning_rate=0.1,
        server_round=1,
        num_rounds=1,
        memory={},
        rng=stream(number, "defense"),
    )
    return replace(
        victim,
        seen=replace(victim.seen, update=one.apply(victim.seen.update, situation)),
        known=replace(victim.known, defenses=(one,)),
    )


def attacked(attack: Attack, victim: Victim) -> dict[str, Any]:
    """Return what an attack got: PSNR in dB, CPU seconds, and the attack that did it."""
    began = time.process_time()
    try:
        guess = attack(victim.seen, victim.known, rng=stream(victim.seed, "attack"))
    except AttackFailed as failed:
        return {"psnr_db": 0.0, "cpu_s": time.process_time() - began, "by": f"failed: {failed}"}
    seconds = time.process_time() - began
    by = str(guess.notes.get("chosen", ""))
    if guess.notes.get("explained") == "no":
        by += ", not explained"
    return {"psnr_db": judge(guess, victim).psnr_db[0], "cpu_s": seconds, "by": by}


def measure(num_images: int) -> dict[str, Any]:
    """Return everything, by defense and attack, one entry per image."""
    attacks = {name: attack_named(name) for name in ATTACKS}
    found: dict[str, dict[str, list[Any]]] = {
        name: {attack: [] for attack in ATTACKS} for name in DEFENSES
    }
    plain = [victim_of(number, None) for number in range(num_images)]
    data = load_data("digits", root="", options={})
    for number in range(num_images):
        for name, defense in DEFENSES.items():
            victim = victim_of(number, defense)
            for attack, instance in attacks.items():
                found[name][attack].append(attacked(instance, victim))
            print(number, name, *(found[name][attack][-1] for attack in ATTACKS), flush=True)
    return {
        "environment": environment(),
        "num_images": num_images,
        "data_mean_db": data_mean_db(data.train_inputs, plain),
        "found": found,
    }


def markdown(table: Mapping[str, Any]) -> str:
    """Return the table for a page: a row per defense."""
    lines = [
        "| defense | `idlg` | `adaptive` | by | CPU seconds, `idlg` | `adaptive` |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in table["found"].items():
        quality = [spread([one["psnr_db"] for one in found[attack]]) for attack in ATTACKS]
        seconds = [spread([one["cpu_s"] for one in found[attack]]) for attack in ATTACKS]
        ways = Counter(one["by"] for one in found["adaptive"]).most_common()
        by = ways[0][0] if len(ways) == 1 else ", ".join(f"{way}: {n}" for way, n in ways)
        lines.append(f"| {name} | {' | '.join(quality)} | {by} | {' | '.join(seconds)} |")
    mean = spread(table["data_mean_db"])
    where = ", ".join(f"{key} {value}" for key, value in table["environment"].items())
    lines += [
        "",
        f"{table['num_images']} images; the data mean has {mean} dB. Measured on {where}.",
    ]
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Return the median, and the least and the largest."""
    return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


def main() -> None:
    """Measure, or print the table of what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--markdown", type=Path)
    given = parser.parse_args()
    if given.markdown:
        print(markdown(json.loads(given.markdown.read_text())))
        return
    torch.set_num_threads(1)
    table = measure(given.images)
    if given.output:
        given.output.write_text(json.dumps(table, indent=1) + "\n")
    print(markdown(table))


if __name__ == "__main__":
    main()
