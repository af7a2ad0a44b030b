"""The same victims attacked by ours, by breaching and by the original procedure, interleaved.

    dlg         CIFAR-100, DLG LeNet, weights U(-0.5, 0.5), one image per gradient: time to success
    convnet-B, resnet-B
                CIFAR-10, untrained ConvNet (64 channels) or ResNet-18 (16), normalised inputs,
                batch normalisation in evaluation mode, batches of B: mean PSNR against CPU time;
                convnet16-B has 16 channels
    throughput  32 victims of one round in the dlg setting: victims per second

breaching (PyPI, 0.1.2; MIT licence) runs in an environment of its own, made once like this:

    python3 -m venv peers && peers/bin/pip install breaching torch torchvision safetensors pydantic

    python -m benchmarks.peers --breaching peers/bin/python --output benchmarks/results/peers.json

Every method sees the same gradient, and labels are recovered by each by its own rule. Methods take
turns target by target, each on one thread; times are CPU seconds of the process that attacks.

breaching's Inverting Gradients runs twice: as it is shipped, with a weight of total variation of
0.2, which is meant for ImageNet, and with the 1e-3 that its own example for CIFAR-10 sets. Only
the second is a fair comparison on small images, and the ratio against it is the one to quote.
"""

import argparse
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from attacks.closed_form import ClosedForm
from attacks.dlg import DLG
from attacks.idlg import IDLG
from attacks.inverting_gradients import InvertingGradients
from attacks.metrics.assignment import match
from attacks.metrics.images import psnr_db
from attacks.observation import (
    Attack,
    AttackFailed,
    Kind,
    Knowledge,
    LocalRecipe,
    ManyAtOnce,
    Observation,
)
from benchmarks.dlg_cifar100 import DATA, environment, published
from benchmarks.dlg_cifar100 import Target as DlgTarget
from fedsim.data.load import load_data
from fedsim.models.build import build_model
from fedsim.models.normalize import Normalize
from fedsim.seeds import stream

ROOT = Path(__file__).resolve().parents[1]
CIFAR10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
"""Mean and standard deviation of a channel of CIFAR-10."""
PEER_TV: dict[str, list[str]] = {
    "as shipped": [],
    "TV 1e-3": ["regularization.total_variation.scale=0.001"],
}
"""Settings of breaching's Inverting Gradients: its own, and its own for CIFAR-10."""
KINDS = {"convnet": ("convnet", 64), "resnet": ("resnet18", 16)}
"""By the name of a table: the model, and its width where the name has none."""
SUCCESS = 1e-3
"""Mean squared error on pixels in [0, 1] below which the dlg setting counts as solved."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """Private images, and what was heard of them.

    Attributes:
        inputs: Shape (B, C, H, W).
        labels: Shape (B,).
        model: As clients train it; sees pixels.
        inner: The part of it behind the normalisation.
        name: Of the inner part, as `build_model` knows it.
        options: Its settings.
        gradient: Of the mean loss, by parameter name of `inner`.
        seed: Of everything drawn for it.
    """

    inputs: Tensor
    labels: Tensor
    model: nn.Module
    inner: nn.Module
    name: str
    options: dict[str, object]
    gradient: dict[str, Tensor]
    seed: int

    @property
    def normaliser(self) -> Normalize | None:
        """The first layer of the model where it normalises."""
        first = self.model[0] if isinstance(self.model, nn.Sequential) else None
        return first if isinstance(first, Normalize) else None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One method on one target.

    Attributes:
        psnr_db: Per image, guesses paired one to one.
        mse: Mean over the batch, from the same pairs.
        labels_right: Whether the multiset of labels is right.
        cpu_s: CPU seconds of the attack.
        closures: Evaluations of the objective, where they are counted.
    """

    psnr_db: list[float]
    mse: float
    labels_right: bool
    cpu_s: float
    closures: int | None = None


Method = Callable[[Target], Outcome]


def make_target(
    images: Tensor,
    labels: Tensor,
    seed: int,
    *,
    batch_size: int,
    model: str,
    options: dict[str, object],
    num_classes: int,
    normalise: bool,
) -> Target:
    """Draw a fresh network and take the gradient that a client would send, in evaluation mode."""
    place = slice(seed * batch_size, (seed + 1) * batch_size)
    shape = (3, 32, 32)
    inner = build_model(model, shape, num_classes, rng=stream(seed, "model"), options=options)
    whole = nn.Sequential(Normalize(*CIFAR10), inner) if normalise else inner
    whole.eval()
    loss = functional.cross_entropy(whole(images[place]), labels[place])
    named = dict(inner.named_parameters())
    gradient = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    return Target(
        inputs=images[place],
        labels=labels[place],
        model=whole,
        inner=inner,
        name=model,
        options=options,
        gradient=gradient,
        seed=seed,
    )


def judged(target: Target, inputs: Tensor, labels: Tensor | None, cpu_s: float) -> Outcome:
    """Pair guesses and private images one to one, and compare them."""
    guess = inputs.float().clamp(0, 1)
    order = [column for _, column in match(guess, target.inputs)]
    quality = psnr_db(guess[order], target.inputs)
    return Outcome(
        psnr_db=quality.tolist(),
        mse=float((guess[order] - target.inputs).square().mean()),
        labels_right=labels is not None
        and torch.equal(labels.cpu().sort().values, target.labels.sort().values),
        cpu_s=cpu_s,
    )


def heard(target: Target) -> tuple[Observation, Knowledge]:
    """Return what an attack of this project is given."""
    prefix = "1." if target.normaliser is not None else ""
    seen = Observation(
        round=1,
        sender="client-0",
        receiver="server",
        kind=Kind.GRADIENT,
        update={prefix + name: tensor for name, tensor in target.gradient.items()},
        weights={name: p.detach() for name, p in target.model.named_parameters()},
        buffers=dict(target.model.named_buffers()),
        num_examples=len(target.labels),
    )
    known = Knowledge(
        model=target.model,
        input_shape=tuple(target.inputs.shape[1:]),
        batch_size=len(target.labels),
        recipe=LocalRecipe(train_mode=False),
    )
    return seen, known


def ours(attack: Attack) -> Method:
    """Return a method that runs one of this project's attacks."""

    def method(target: Target) -> Outcome:
        seen, known = heard(target)
        cpu = time.process_time()
        try:
            guess = attack(seen, known, rng=stream(target.seed, "attack"))
        except AttackFailed as failed:
            print(f"  failed: {failed}", file=sys.stderr)
            return judged(target, torch.full_like(target.inputs, 0.5), None, spent(cpu))
        assert guess.inputs is not None
        return judged(target, guess.inputs, guess.labels, spent(cpu))

    return method


def spent(since: float) -> float:
    """Return the CPU seconds of this process since then."""
    return time.process_time() - since


def original(target: Target) -> Outcome:
    """Run the published DLG procedure, stopped by the truth once it has succeeded or diverged."""
    one = published(
        DlgTarget(
            image=target.inputs,
            label=target.labels,
            model=target.model,
            gradient=target.gradient,
            seed=target.seed,
        )
    )
    return Outcome(
        psnr_db=[-10 * math.log10(one.mse)],
        mse=one.mse,
        labels_right=one.label_right,
        cpu_s=one.hit_s[0] if one.hit_s[0] is not None else one.cpu_s,
    )


class Breaching:
    """The peer, as a process of its own environment.

    Args:
        python: The interpreter of that environment.
        folder: For the files that travel.
    """

    def __init__(self, python: str, folder: Path) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.breaching_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            text=True,
            env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""},
        )

    def method(self, attack: str, overrides: Sequence[str]) -> Method:
        """Return a method that runs one of its attacks."""

        def run(target: Target) -> Outcome:
            wanted, found = self.folder / "target", self.folder / "guess"
            save_file(self._tensors(target), wanted)
            normaliser = target.normaliser
            job = {
                "target": str(wanted),
                "output": str(found),
                "attack": attack,
                "overrides": list(overrides),
                "seed": target.seed,
                "model": target.name,
                "model_options": target.options,
                "num_classes": target.gradient[[*target.gradient][-1]].shape[0],
                "input_shape": list(target.inputs.shape[1:]),
                "batch_size": len(target.labels),
                "mean": CIFAR10[0] if normaliser is not None else [0.0, 0.0, 0.0],
                "std": CIFAR10[1] if normaliser is not None else [1.0, 1.0, 1.0],
            }
            answer = self._ask(job)
            guess = load_file(found)
            labels = guess["labels"] if guess["labels"].dim() == 1 else guess["labels"].argmax(1)
            inputs = guess["inputs"].nan_to_num(0.5)
            outcome = judged(target, inputs, labels, answer["cpu_s"])
            return Outcome(**{**asdict(outcome), "closures": answer["closures"]})

        return run

    @staticmethod
    def _tensors(target: Target) -> dict[str, Tensor]:
        parts = {f"gradient/{name}": tensor for name, tensor in target.gradient.items()}
        parts |= {f"weights/{name}": p.detach() for name, p in target.inner.named_parameters()}
        parts |= {f"buffers/{name}": buffer for name, buffer in target.inner.named_buffers()}
        return {name: tensor.contiguous().clone() for name, tensor in parts.items()}

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"breaching ended with exit code {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@dataclass
class Table:
    """Outcomes by method, in the order of the targets."""

    outcomes: dict[str, list[Outcome]] = field(default_factory=lambda: defaultdict(list))

    def run(self, targets: Iterable[Target], methods: dict[str, Method]) -> None:
        """Let the methods take turns on each target."""
        for number, target in enumerate(targets):
            for name, method in methods.items():
                self.outcomes[name].append(method(target))
            shown = (
                f"{name} {got[-1].mse:.1e} {got[-1].cpu_s:.1f}s"
                for name, got in self.outcomes.items()
            )
            print(f"{number:3d}", *shown, sep="  ", flush=True)

    def rows(self) -> dict[str, dict[str, float | int | None]]:
        """Sum up each method."""
        return {name: summed(got) for name, got in self.outcomes.items()}


def summed(outcomes: Sequence[Outcome]) -> dict[str, float | int | None]:
    """Return the figures of one method."""
    quality = [db for one in outcomes for db in one.psnr_db]
    successes = [one.cpu_s for one in outcomes if one.mse < SUCCESS]
    total = sum(one.cpu_s for one in outcomes)
    closures = [one.closures for one in outcomes if one.closures]
    return {
        "victims": len(outcomes),
        "successes": len(successes),
        "labels_right": sum(one.labels_right for one in outcomes),
        "psnr_db_mean": statistics.mean(quality),
        "psnr_db_standard_error": statistics.stdev(quality) / len(quality) ** 0.5
        if len(quality) > 1
        else None,
        "cpu_s_per_victim": total / len(outcomes),
        "cpu_s_to_success_median": statistics.median(successes) if successes else None,
        "cpu_s_per_success": total / len(successes) if successes else None,
        "closures_per_s": sum(closures) / total if closures else None,
    }


def dlg_table(peer: Breaching | None, root: str, victims: int) -> dict[str, Any]:
    """Time to success in the DLG setting."""
    data = load_data("cifar100", root=root, options={})
    targets = (
        make_target(
            data.test_inputs,
            data.test_labels,
            seed,
            batch_size=1,
            model="dlg-lenet",
            options={},
            num_classes=100,
            normalise=False,
        )
        for seed in range(victims)
    )
    methods: dict[str, Method] = {
        "closed-form": ours(ClosedForm()),
        "idlg": ours(IDLG()),
        "dlg": ours(DLG()),
        "original DLG, 300 steps": original,
    }
    if peer is not None:
        overrides = ["optim.max_iterations=300"]
        methods["breaching deepleakage, 300 steps"] = peer.method("deepleakage", overrides)
    table = Table()
    table.run(targets, methods)
    rows = table.rows()
    return {"rows": rows, "ratios": success_ratios(rows), "outcomes": recorded(table)}


def success_ratios(rows: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return CPU time per success of each peer over that of each of ours."""
    peers = [name for name in rows if name.startswith(("original", "breaching"))]
    return {
        name: {
            peer: rows[peer]["cpu_s_per_success"] / rows[name]["cpu_s_per_success"]
            for peer in peers
            if rows[peer]["cpu_s_per_success"] and rows[name]["cpu_s_per_success"]
        }
        for name in rows
        if name not in peers
    }


def gradients_table(
    peer: Breaching | None,
    root: str,
    *,
    model: str,
    width: int,
    batch_size: int,
    victims: int,
    our_steps: Sequence[int],
    peer_steps: Sequence[int],
    peer_settings: Sequence[str] = tuple(PEER_TV),
) -> dict[str, Any]:
    """Mean PSNR against CPU time for Inverting Gradients."""
    data = load_data("cifar10", root=root, options={})
    targets = (
        make_target(
            data.test_inputs,
            data.test_labels,
            seed,
            batch_size=batch_size,
            model=model,
            options={"width": width},
            num_classes=10,
            normalise=True,
        )
        for seed in range(victims)
    )
    methods: dict[str, Method] = {}
    for steps in our_steps:
        methods[f"ours, {steps} steps"] = ours(InvertingGradients(steps=steps))
    for steps in peer_steps:
        for which in peer_settings:
            if peer is None:
                break
            overrides = [f"optim.max_iterations={steps}", *PEER_TV[which]]
            methods[f"breaching {which}, {steps} steps"] = peer.method(
                "invertinggradients", overrides
            )
    table = Table()
    table.run(targets, methods)
    rows = table.rows()
    return {"rows": rows, "ratios": quality_ratios(rows), "outcomes": recorded(table)}


def table_of(
    name: str,
    peer: Breaching | None,
    root: str,
    *,
    victims: int,
    our_steps: Sequence[int],
    peer_steps: Sequence[int],
    peer_settings: Sequence[str] = tuple(PEER_TV),
) -> dict[str, Any]:
    """Run a table by name: "dlg", or that of a model and a batch size, such as "convnet16-1"."""
    if name == "dlg":
        return dlg_table(peer, root, victims)
    model, width, batch = victim_model(name)
    return gradients_table(
        peer,
        root,
        model=model,
        width=width,
        batch_size=batch,
        victims=victims,
        our_steps=our_steps,
        peer_steps=peer_steps,
        peer_settings=peer_settings,
    )


def victim_model(name: str) -> tuple[str, int, int]:
    """Return the model, width and batch size that a name such as "convnet16-1" stands for."""
    kind, _, batch = name.partition("-")
    letters = kind.rstrip("0123456789")
    model, width = KINDS[letters]
    return model, int(kind[len(letters) :] or width), int(batch or 1)


def quality_ratios(rows: dict[str, dict[str, Any]]) -> dict[str, float | None]:
    """Return the peer's CPU time over that of our cheapest run of at least its mean PSNR."""
    found: dict[str, float | None] = {}
    for name, peer in rows.items():
        if name.startswith("ours"):
            continue
        enough = [
            row["cpu_s_per_victim"]
            for other, row in rows.items()
            if other.startswith("ours") and row["psnr_db_mean"] >= peer["psnr_db_mean"]
        ]
        found[name] = peer["cpu_s_per_victim"] / min(enough) if enough else None
    return found


def throughput_table(root: str, victims: int) -> dict[str, Any]:
    """Victims of one round, all at once and one by one."""
    data = load_data("cifar100", root=root, options={})
    model = build_model("dlg-lenet", (3, 32, 32), 100, rng=stream(0, "model"), options={})
    named = dict(model.named_parameters())
    targets = []
    for index in range(victims):
        inputs, labels = data.test_inputs[index : index + 1], data.test_labels[index : index + 1]
        loss = functional.cross_entropy(model(inputs), labels)
        gradient = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
        targets.append(
            Target(
                inputs=inputs,
                labels=labels,
                model=model,
                inner=model,
                name="dlg-lenet",
                options={},
                gradient=gradient,
                seed=index,
            )
        )
    found: dict[str, Any] = {}
    attacks: dict[str, Attack] = {"closed-form": ClosedForm(), "idlg": IDLG(), "dlg": DLG()}
    for name, attack in attacks.items():
        row: dict[str, Any] = {"victims": victims}
        row["victims_per_s_one_by_one"], row["successes_one_by_one"] = rate(targets, ours(attack))
        if isinstance(attack, ManyAtOnce):
            row["victims_per_s_together"], row["successes_together"] = together(targets, attack)
        found[name] = row
    few = targets[: max(1, victims // 8)]
    per_s, successes = rate(few, original)
    found["original DLG, 300 steps"] = {
        "victims": len(few),
        "victims_per_s_one_by_one": per_s,
        "successes_one_by_one": successes,
    }
    return {"rows": found}


def rate(targets: Sequence[Target], method: Method) -> tuple[float, int]:
    """Return victims per CPU second, and how many were recovered."""
    outcomes = [method(target) for target in targets]
    cpu_s = sum(one.cpu_s for one in outcomes)
    return len(targets) / cpu_s, sum(one.mse < SUCCESS for one in outcomes)


def together(targets: Sequence[Target], attack: ManyAtOnce) -> tuple[float, int]:
    """Return the same for all targets in one computation."""
    seen, known = zip(*map(heard, targets), strict=True)
    rngs = [stream(target.seed, "attack") for target in targets]
    cpu = time.process_time()
    guesses = attack.many(seen, known, rngs=rngs)
    cpu_s = spent(cpu)
    right = 0
    for target, guess in zip(targets, guesses, strict=True):
        if not isinstance(guess, AttackFailed) and guess.inputs is not None:
            right += judged(target, guess.inputs, guess.labels, cpu_s).mse < SUCCESS
    return len(targets) / cpu_s, right


def recorded(table: Table) -> dict[str, list[dict[str, Any]]]:
    """Return every outcome, for the file."""
    return {name: [asdict(one) for one in got] for name, got in table.outcomes.items()}


def markdown(rows: dict[str, dict[str, Any]]) -> str:
    """Return a table for a page: one row per method."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = ["| method | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, row in rows.items():
        cells = ("-" if row.get(key) is None else f"{row[key]:.3g}" for key in keys)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TITLES = {
    "dlg": "LeNet of DLG, CIFAR-100, B = 1",
    "convnet": "ConvNet, CIFAR-10",
    "resnet": "ResNet-18, CIFAR-10",
    "throughput": "LeNet of DLG, CIFAR-100, victims of one round, per CPU second",
}
"""What a table is about, by how its name begins."""


def page(tables: Mapping[str, dict[str, Any]]) -> str:
    """Return all tables and their ratios for a page."""
    parts = []
    for name, table in tables.items():
        title = next(text for start, text in TITLES.items() if name.startswith(start))
        parts += [f"### {name}: {title}", "", markdown(table["rows"]), ""]
        for ours, ratios in table.get("ratios", {}).items():
            if isinstance(ratios, dict):
                shown = ", ".join(f"{peer} {_times(ratio)}" for peer, ratio in ratios.items())
                parts += [f"CPU time per success, the others over {ours}: {shown}.", ""]
            else:
                said = f"CPU time of {ours} over our cheapest run of at least its mean PSNR: "
                parts += [f"{said}{_times(ratios)}.", ""]
    return "\n".join(parts)


def _times(ratio: float | None) -> str:
    return "not reached" if ratio is None else f"{ratio:.3g}x"


def main() -> None:
    """Run the tables and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default=str(DATA), help="folder that holds cifar10 and cifar100")
    parser.add_argument("--breaching", help="Python of the environment with breaching")
    parser.add_argument("--victims", type=int, default=20, help="of the dlg table")
    parser.add_argument("--images", type=int, default=6, help="targets of each gradients table")
    parser.add_argument("--our-steps", type=int, nargs="+", default=[50, 100, 200, 300, 600, 1200])
    parser.add_argument("--peer-steps", type=int, nargs="+", default=[300, 1200])
    parser.add_argument("--peer-settings", nargs="+", choices=[*PEER_TV], default=[*PEER_TV])
    parser.add_argument("--together", type=int, default=32, help="victims of the throughput table")
    parser.add_argument(
        "--tables", nargs="+", default=["dlg", "convnet-1", "convnet-4", "resnet-1", "throughput"]
    )
    parser.add_argument(
        "--output",
        type=Path,
        help="write everything as JSON, after every table; tables that it holds already stay",
    )
    parser.add_argument("--markdown", type=Path, help="print the tables of this file; run nothing")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(page(json.loads(arguments.markdown.read_text())["tables"]))
        return
    torch.set_num_threads(1)
    record: dict[str, Any] = {"environment": environment(), "tables": {}}
    if arguments.output and arguments.output.is_file():  # tables that are not run now stay
        record["tables"] = json.loads(arguments.output.read_text())["tables"]
    with tempfile.TemporaryDirectory() as folder:
        peer = Breaching(arguments.breaching, Path(folder)) if arguments.breaching else None
        for name in arguments.tables:
            print(f"\n{name}", flush=True)
            if name == "throughput":
                found = throughput_table(arguments.data, arguments.together)
            else:
                found = table_of(
                    name,
                    peer,
                    arguments.data,
                    victims=arguments.victims if name == "dlg" else arguments.images,
                    our_steps=arguments.our_steps,
                    peer_steps=arguments.peer_steps,
                    peer_settings=arguments.peer_settings,
                )
            found["environment"] = environment()
            record["tables"][name] = found
            print(markdown(found["rows"]))
            print(json.dumps(found.get("ratios", {}), indent=1), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(record, indent=1))
        if peer is not None:
            peer.close()


if __name__ == "__main__":
    main()
