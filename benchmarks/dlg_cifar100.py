"""The setting of the DLG paper, four ways, interleaved in one run.

CIFAR-100, one image per gradient, the DLG LeNet with all weights and biases U(-0.5, 0.5), a fresh
draw per image from seeds 0, 1, 2, ... that were never tuned:

    closed form   attacks.closed_form.ClosedForm
    idlg          attacks.idlg.IDLG: label first, then optimisation
    dlg           attacks.dlg.DLG: image and label together
    published     L-BFGS with learning rate 1 and without line search, joint labels, N(0, 1) starts,
                  300 steps (Zhu et al., 2019, https://arxiv.org/abs/1906.08935)

Goals: closed form 50 of 50 to MSE < 1e-4; idlg at least 95 % to MSE < 1e-3 and none diverged.

    python -m benchmarks.dlg_cifar100 --output dlg_cifar100.json

The published search is helped: it ends as soon as its image is right to MSE < 1e-5, or has
diverged, which only the owner of the image can tell. The others end by what an attacker sees.
"""

import argparse
import json
import math
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.closed_form import ClosedForm
from attacks.dlg import DLG
from attacks.idlg import IDLG
from attacks.observation import Attack, AttackFailed, Kind, Knowledge, Observation
from fedsim.data.load import load_data
from fedsim.models.build import build_model
from fedsim.seeds import stream

DATA = Path(__file__).resolve().parents[1].parent / "shared" / "data"
DIVERGED = 1e3
"""Mean squared error, on pixels in [0, 1], from which a search has diverged."""
RECOVERED = 1e-5
"""Mean squared error at which the published search is stopped: it has succeeded."""
STEPS = 800
"""Of our searching attacks, at most: twice their default, which one in ten images needs."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One method on one image.

    Attributes:
        mse: Of the guess, clamped to [0, 1].
        diverged: Whether the unclamped guess left every bound, or is not finite.
        label_right: Whether the label was found.
        seconds: Wall time.
        cpu_s: CPU time of the process.
        hit_s: CPU time at which MSE < 1e-3 and < 1e-4 were reached; for the attacks of this
            project, which cannot see the truth, the time of the whole attack.
    """

    mse: float
    diverged: bool
    label_right: bool
    seconds: float
    cpu_s: float
    hit_s: tuple[float | None, float | None]


@dataclass(frozen=True, kw_only=True)
class Target:
    """One private image, and what was heard of it."""

    image: Tensor
    label: Tensor
    model: nn.Module
    gradient: dict[str, Tensor]
    seed: int


def make_target(images: Tensor, labels: Tensor, index: int) -> Target:
    """Draw a fresh network for image `index` and take the gradient a client would send."""
    rng = stream(index, "model")
    model = build_model("dlg-lenet", (3, 32, 32), 100, rng=rng, options={})
    image, label = images[index : index + 1], labels[index : index + 1]
    loss = functional.cross_entropy(model(image), label)
    named = dict(model.named_parameters())
    gradient = dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))
    return Target(image=image, label=label, model=model, gradient=gradient, seed=index)


def attacked(attack: Attack) -> Callable[[Target], Outcome]:
    """Return a method that runs one of this project's attacks as an adversary would."""

    def method(target: Target) -> Outcome:
        seen = Observation(
            round=1,
            sender="client-0",
            receiver="server",
            kind=Kind.GRADIENT,
            update=target.gradient,
            weights={name: p.detach() for name, p in target.model.named_parameters()},
            num_examples=1,
        )
        known = Knowledge(
            model=target.model, input_shape=(3, 32, 32), num_classes=100, batch_size=1
        )
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            guess = attack(seen, known, rng=stream(target.seed, "attack"))
        except AttackFailed:
            spent = time.process_time() - cpu
            return Outcome(
                mse=math.inf,
                diverged=False,
                label_right=False,
                seconds=time.perf_counter() - wall,
                cpu_s=spent,
                hit_s=(None, None),
            )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert guess.inputs is not None
        assert guess.labels is not None
        error = mse(guess.inputs, target.image)
        return Outcome(
            mse=error,
            diverged=not math.isfinite(error),
            label_right=bool((guess.labels == target.label).all()),
            seconds=wall,
            cpu_s=cpu,
            hit_s=(cpu if error < 1e-3 else None, cpu if error < 1e-4 else None),
        )

    return method


def published(target: Target) -> Outcome:
    """Run the published optimiser; it is ended early when it has recovered or has diverged."""
    rng = stream(target.seed, "attack")
    dummy = torch.randn(target.image.shape, generator=rng).requires_grad_()
    logits = torch.randn((1, 100), generator=rng).requires_grad_()
    optimizer = torch.optim.LBFGS([dummy, logits])
    parameters = list(target.model.parameters())
    observed = list(target.gradient.values())

    def closure() -> float:
        optimizer.zero_grad()
        loss = functional.cross_entropy(target.model(dummy), logits.softmax(dim=-1))
        guess = torch.autograd.grad(loss, parameters, create_graph=True)
        distance = torch.stack(
            [(a - b).square().sum() for a, b in zip(guess, observed, strict=True)]
        ).sum()
        distance.backward(inputs=[dummy, logits])  # type: ignore[no-untyped-call]
        return float(distance.detach())

    wall, cpu = time.perf_counter(), time.process_time()
    hits: list[float | None] = [None, None]
    diverged = False
    for _ in range(300):
        optimizer.step(closure)  # type: ignore[no-untyped-call]
        error = float((dummy.detach() - target.image).square().mean())
        clamped = mse(dummy.detach(), target.image)
        for place, threshold in enumerate((1e-3, 1e-4)):
            if hits[place] is None and clamped < threshold:
                hits[place] = time.process_time() - cpu
        diverged = not error < DIVERGED
        if diverged or clamped < RECOVERED:
            break
    return Outcome(
        mse=mse(dummy.detach().nan_to_num(0.0), target.image),
        diverged=diverged,
        label_right=bool((logits.argmax(dim=1) == target.label).all()),
        seconds=time.perf_counter() - wall,
        cpu_s=time.process_time() - cpu,
        hit_s=(hits[0], hits[1]),
    )


def mse(guess: Tensor, truth: Tensor) -> float:
    """Return the mean squared error on pixels clamped to [0, 1]."""
    return float((guess.clamp(0, 1) - truth).square().mean())


def row(outcomes: list[Outcome]) -> dict[str, float | int | None]:
    """Sum up one method."""
    cpu_of_successes = [one.hit_s[0] for one in outcomes if one.hit_s[0] is not None]
    errors = [one.mse for one in outcomes]
    return {
        "images": len(outcomes),
        "below_1e-3": sum(one.mse < 1e-3 for one in outcomes),
        "below_1e-4": sum(one.mse < 1e-4 for one in outcomes),
        "diverged": sum(one.diverged for one in outcomes),
        "labels_right": sum(one.label_right for one in outcomes),
        "mse_median": statistics.median(errors),
        "mse_worst": max(errors),
        "wall_s_per_image": statistics.mean(one.seconds for one in outcomes),
        "cpu_s_per_image": statistics.mean(one.cpu_s for one in outcomes),
        "cpu_s_to_1e-3_median": statistics.median(cpu_of_successes) if cpu_of_successes else None,
        "cpu_s_per_success": sum(one.cpu_s for one in outcomes) / len(cpu_of_successes)
        if cpu_of_successes
        else None,
    }


def ratios(table: dict[str, dict[str, float | int | None]]) -> dict[str, dict[str, float]]:
    """Return how many times the CPU time of each method the published search takes."""
    found: dict[str, dict[str, float]] = {}
    for name in table:
        found[name] = {}
        for key in ("cpu_s_per_success", "cpu_s_to_1e-3_median"):
            theirs, ours = table.get("published", {}).get(key), table[name][key]
            if theirs and ours:
                found[name][key] = theirs / ours
    return found


def environment() -> dict[str, str]:
    """Return what the times depend on."""
    listing = Path("/proc/cpuinfo")
    lines = listing.read_text().splitlines() if listing.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": f"{names[0] if names else platform.processor() or platform.machine()}, 1 thread",
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def markdown(table: dict[str, dict[str, float | int | None]]) -> str:
    """Return the table for a page: one row per figure, one column per method."""
    lines = ["| | " + " | ".join(table) + " |", "|---" * (len(table) + 1) + "|"]
    for key in next(iter(table.values())):
        values = [table[name][key] for name in table]
        cells = ("-" if value is None else f"{value:.3g}" for value in values)
        lines.append(f"| {key} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds cifar100")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--published-images", type=int, default=None, help="default: all")
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    parser.add_argument("--markdown", type=Path, help="print the table of such a JSON, and end")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())["table"]))
        return
    torch.set_num_threads(1)
    data = load_data("cifar100", root=str(arguments.data), options={})
    methods: dict[str, Callable[[Target], Outcome]] = {
        "closed form": attacked(ClosedForm()),
        "idlg": attacked(IDLG(steps=STEPS)),
        "dlg": attacked(DLG(steps=STEPS)),
        "published": published,
    }
    slow = arguments.images if arguments.published_images is None else arguments.published_images
    outcomes: dict[str, list[Outcome]] = {name: [] for name in methods}
    guesses: dict[str, list[float]] = {"random guess": [], "data mean": []}
    for index in range(arguments.images):
        target = make_target(data.test_inputs, data.test_labels, index)
        noise = torch.rand(target.image.shape, generator=stream(index, "guess"))
        guesses["random guess"].append(mse(noise, target.image))
        guesses["data mean"].append(mse(data.train_inputs.mean(0, keepdim=True), target.image))
        for name, method in methods.items():
            if name == "published" and index >= slow:
                continue
            outcomes[name].append(method(target))
        print(
            f"{index:3d}",
            *(
                f"{name} {got[-1].mse:.1e} {got[-1].cpu_s:.2f}s"
                for name, got in outcomes.items()
                if got
            ),
            sep="  ",
            flush=True,
        )
    table = {name: row(got) for name, got in outcomes.items() if got}
    print("\n" + ", ".join(f"{key} {value}" for key, value in environment().items()))
    for name, values in guesses.items():
        print(f"{name}: MSE median {statistics.median(values):.3f}")
    for name, summary in table.items():
        print(f"\n{name}")
        for key, value in summary.items():
            print(f"  {key:<22} {value:.4g}" if value is not None else f"  {key:<22} -")
    print("\nCPU time, published over ours (MSE < 1e-3):")
    for name, found in ratios(table).items():
        print(f"  {name:<12}", *(f"{key} {ratio:.1f}x" for key, ratio in found.items()), sep="  ")
    if arguments.output:
        record = {
            "environment": environment(),
            "ratios": ratios(table),
            "table": table,
            "baselines": guesses,
            "outcomes": {name: [asdict(one) for one in got] for name, got in outcomes.items()},
        }
        arguments.output.write_text(json.dumps(record, indent=1).replace("Infinity", "null"))


if __name__ == "__main__":
    main()
