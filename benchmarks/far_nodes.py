"""How far along a line an adversary at its end sees: images of peers that it never hears.

El Mrini, Cyffers and Bellet (2024, https://arxiv.org/abs/2402.10001) reconstruct the data of peers
up to distance 28 on a line of 31, from logistic regression with a small learning rate. Here 31
peers hold one embedded digit each and train softmax regression by D-PSGD with Metropolis weights;
peer 0 listens. What it hears goes through `attacks.isolation`; an image is a row of the gradient of
the weights over the gradient of its bias.

    python -m benchmarks.far_nodes --output benchmarks/results/far_nodes.json
    python -m benchmarks.far_nodes --markdown benchmarks/results/far_nodes.json
"""

import argparse
import functools
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from attacks.isolation.unknowns import Unknowns
from attacks.isolation.updates import Heard, Wanted, isolate
from attacks.metrics.images import psnr_db
from benchmarks.dlg_cifar100 import environment
from fedsim.data.load import load_data
from fedsim.protocols.coefficients import coefficients
from fedsim.protocols.d_psgd import DecentralisedPSGD
from fedsim.protocols.simulate import simulate
from fedsim.seeds import stream
from fedsim.topologies.network import PeerNetwork

PEERS = 31
RECOVERED_DB = 20.0
PRECISION = {torch.float32: 2.0**-24, torch.float64: 2.0**-53}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A training.

    Attributes:
        dtype: Of weights, gradients and messages.
        learning_rate: Step size of all peers.
        rounds: Of training, all of them heard.
        start: Standard deviation of the common start.
    """

    dtype: torch.dtype
    learning_rate: float
    rounds: int
    start: float = 0.0

    @property
    def title(self) -> str:
        """As tables call it."""
        numbers = "double" if self.dtype == torch.float64 else "single"
        start = f"{self.start:g}" if self.start else "zeros"
        return f"{numbers} | {self.learning_rate:g} | {start} | {self.rounds}"


SETTINGS = [
    *(
        Setting(dtype=torch.float64, learning_rate=rate, rounds=100)
        for rate in (1e-2, 1e-4, 1e-6, 1e-8, 1e-10, 1e-12)
    ),
    *(Setting(dtype=torch.float64, learning_rate=1e-12, rounds=rounds) for rounds in (10, 31)),
    *(Setting(dtype=torch.float32, learning_rate=rate, rounds=100) for rate in (1e-2, 1e-4, 1e-6)),
    *(
        Setting(dtype=torch.float32, learning_rate=rate, rounds=100, start=0.1)
        for rate in (1e-1, 1e-2, 1e-3, 1e-4)
    ),
]


def listen(setting: Setting, seed: int) -> dict[str, list[float]]:
    """Return what peer 0 gets of the others, nearest first.

    Of each peer the round is taken in which the adversary expects the least error.

    Returns:
        `expected_error` and `update_error`, relative, and `psnr_db`, one value per peer 1..30.
    """
    data = load_data("digits", root="", options={})
    first = seed * PEERS
    images = data.train_inputs[first : first + PEERS].flatten(1).to(setting.dtype)
    labels = data.train_labels[first : first + PEERS]
    num_classes, num_pixels = data.num_classes, images.shape[1]
    size = num_classes * (num_pixels + 1)
    updates: dict[tuple[int, int], Tensor] = {}

    def local(peer: int, number: int, model: Tensor) -> Tensor:
        weight, bias = (
            part.detach().clone().requires_grad_()
            for part in torch.split(model, [num_classes * num_pixels, num_classes])
        )
        rows = weight.view(num_classes, num_pixels)
        said = functional.linear(images[peer : peer + 1], rows, bias)
        loss = functional.cross_entropy(said, labels[peer : peer + 1])
        updates[peer, number] = torch.cat(torch.autograd.grad(loss, [weight, bias]))
        return updates[peer, number]

    start = setting.start * torch.randn(size, generator=stream(seed, "start"))
    starts = [start.to(setting.dtype)] * PEERS
    network, protocol = PeerNetwork(name="line", num_peers=PEERS), DecentralisedPSGD()
    rate, rounds = setting.learning_rate, setting.rounds
    played = simulate(protocol, network, starts, local, rounds=rounds, learning_rate=rate)
    unknowns = Unknowns(num_peers=PEERS, rounds=rounds, own_starts=False)
    planned = coefficients(
        protocol, network, unknowns, learning_rate=rate, hears=lambda *link: 0 in link
    )
    heard = []
    for spoken, rows in zip(played, planned, strict=True):
        near = [said for said in spoken.said if 0 in (said.sender, said.receiver)]
        for row, said in zip(rows.messages, near, strict=True):
            if said.sender != 0:
                load = functools.partial(said.parcel.tensors.__getitem__, "model")
                heard.append(Heard(row=row.row, load=load))
    known = {unknowns.start(0): lambda: starts[0]} | {
        unknowns.update(0, number): functools.partial(updates.__getitem__, (0, number))
        for number in range(1, rounds + 1)
    }
    best: dict[int, tuple[float, float, float]] = {}
    for number in sorted({1, rounds // 4, rounds // 2, rounds}):
        for one in isolate(
            heard,
            [Wanted(peer=peer, round=number) for peer in range(1, PEERS)],
            unknowns=unknowns,
            known=known,
            num_coordinates=size,
            precision=PRECISION[setting.dtype],
            worst_error=1.0,
            dtype=torch.float64,
        ):
            assert one.expected_error is not None
            if one.peer not in best or one.expected_error < best[one.peer][0]:
                truth = updates[one.peer, number].double()
                error = float((one.update - truth).norm() / truth.norm())
                guess = image_of(one.update, num_classes)
                db = float(psnr_db(guess[None], images[one.peer][None].double()))
                best[one.peer] = (one.expected_error, error, db)
    missing = (1.0, 1.0, 0.0)
    columns = zip(*(best.get(peer, missing) for peer in range(1, PEERS)), strict=True)
    names = ("expected_error", "update_error", "psnr_db")
    return {name: list(column) for name, column in zip(names, columns, strict=True)}


def image_of(gradient: Tensor, num_classes: int) -> Tensor:
    """Return the pixels behind a gradient of softmax regression, by its largest bias gradient."""
    weight, bias = torch.split(gradient, [len(gradient) - num_classes, num_classes])
    row = int(bias.abs().argmax())
    return (weight.view(num_classes, -1)[row] / bias[row]).nan_to_num().clamp(0, 1)


def reach(values: Sequence[bool]) -> int:
    """Return the distance up to which all hold."""
    return next((number for number, one in enumerate(values) if not one), len(values))


def measure(seeds: int) -> dict[str, Any]:
    """Return what was got in every setting, one entry per seed."""
    found: dict[str, list[dict[str, list[float]]]] = {}
    for setting in SETTINGS:
        found[setting.title] = [listen(setting, seed) for seed in range(seeds)]
        print(setting.title, *map(summary, found[setting.title]), sep=" | ", flush=True)
    return {"environment": environment(), "found": found}


def summary(got: Mapping[str, Sequence[float]]) -> tuple[int, int]:
    """Return up to which distance all images came back, and how many did."""
    back = [db >= RECOVERED_DB for db in got["psnr_db"]]
    return reach(back), sum(back)


def markdown(table: Mapping[str, Any]) -> str:
    """Return the table for a page: a row per setting."""
    lines = [
        "| numbers | learning rate | start | rounds | every image up to distance | images of 30 | "
        "error below 10 % up to | expected |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for title, runs in table["found"].items():
        cells = [
            [summary(one)[0] for one in runs],
            [summary(one)[1] for one in runs],
            [reach([error < 0.1 for error in one["update_error"]]) for one in runs],
            [reach([error < 0.1 for error in one["expected_error"]]) for one in runs],
        ]
        lines.append(f"| {title} | " + " | ".join(map(_spread, cells)) + " |")
    return "\n".join(lines)


def _spread(values: Sequence[int]) -> str:
    low, high, middle = min(values), max(values), statistics.median(values)
    return f"{middle:g}" if low == high else f"{middle:g} ({low} to {high})"


def main() -> None:
    """Measure and write JSON, or read JSON and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--markdown", type=Path, help="print the table of this file")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())))
        return
    torch.set_num_threads(1)
    table = measure(arguments.seeds)
    print(markdown(table))
    if arguments.output:
        arguments.output.write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
