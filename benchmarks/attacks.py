"""What attacks cost: victims per second, closures beside the published one, and the machine's use.

    profile       where the time of the closed form goes, by functions
    alone-profile the same of one victim by itself
    lenet-profile, convnet16-profile, resnet-profile
                  where the time of a closure goes, by operations of torch
    closed-form   victims of one round in the setting of DLG, by how many are solved in one call
    lenet         one evaluation of the matching loss and its slope for that model, all victims in
                  one computation, beside the loop that is published with DLG
    convnet16, convnet, resnet
                  the same for the loss of Inverting Gradients on normalised CIFAR-10, and how many
                  steps per second that makes
    dlg, convnet16-1, ...
                  attacks from end to end beside the original and breaching: see `benchmarks.peers`

    python -m benchmarks.attacks --output benchmarks/results/attacks.json
    python -m benchmarks.attacks --device cuda --batches 1 8 64 512 --modes eager compile graph
    python -m benchmarks.attacks --markdown benchmarks/results/attacks.json

Seconds are CPU seconds of this process on a CPU, and seconds between two waits for the device on
a GPU. Whatever is compared takes turns, repeat by repeat, so that other work on the machine meets
all alike; figures are medians, with the lowest and highest beside.

*Utilisation* is the arithmetic that a closure needs over what the machine does in the same time in
a plain product of two matrices, measured in turns with it. What a closure needs is counted by
`torch.utils.flop_counter` in two reverse passes, the second to the inputs alone.
"""

import argparse
import cProfile
import functools
import json
import pstats
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from attacks.closed_form import ClosedForm
from attacks.matching.company import Company, company_of
from attacks.matching.distances import SquaredDistances
from attacks.matching.objectives import chord
from attacks.matching.priors import total_variation
from attacks.matching.rows import Row, rows_of
from attacks.matching.victim import rebuild
from attacks.observation import AttackFailed, Kind, Knowledge, LocalRecipe, Observation
from benchmarks import peers
from benchmarks.dlg_cifar100 import DATA, environment
from benchmarks.performance import markdown
from fedsim.data.load import load_data
from fedsim.models.build import build_model
from fedsim.models.normalize import Normalize
from fedsim.seeds import stream

PROFILES = ("lenet-profile", "convnet16-profile", "resnet-profile")
TABLES = ("profile", "alone-profile", *PROFILES, "closed-form", "lenet", "convnet16", "resnet")
CPU = torch.device("cpu")
MODES = ("eager", "compile", "graph")
"""How a closure runs: as written, through `torch.compile`, or recorded once as a CUDA graph."""
SUCCESS = 1e-3
"""Mean squared error on pixels in [0, 1] below which a victim counts as solved."""

WORK = {
    "convolutions": ("convolution", "conv2d", "conv_transpose"),
    "matrix products": ("mm", "bmm", "baddbmm", "addmm"),
    "copies, paddings and joins": ("copy_", "cat", "pad", "fill_", "index", "gather", "clone"),
    "normalisation and pooling": ("batch_norm", "pool"),
    "sums": ("sum", "norm", "mean", "amax"),
    "views and making of tensors": (
        *("view", "strided", "transpose", "permute", "expand", "slice", "select", "squeeze"),
        *("empty", "reshape", "flatten", "movedim", "detach", "alias", "narrow", "t", "resize_"),
    ),
}
"""Kinds of operations, by what is in their names; the first that fits. Others go by element."""

Closure = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Points (R, ...) -> their distances (R,) and the slopes of these, (R, ...)."""


@dataclass(frozen=True, kw_only=True)
class Clock:
    """Times work on one device."""

    device: torch.device

    def wait(self) -> None:
        """Wait until the device has done what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def seconds(self, work: Callable[[], object], *, times: int = 1) -> float:
        """Return the seconds that one call takes; on a CPU, of its own time."""
        now = time.perf_counter if self.device.type == "cuda" else time.process_time
        self.wait()
        start = now()
        for _ in range(times):
            work()
        self.wait()
        return (now() - start) / times

    def in_turns(
        self, works: Mapping[str, Callable[[], object]], *, repeats: int, least_s: float = 0.0
    ) -> dict[str, list[float]]:
        """Let works take turns; return the seconds of each call.

        Args:
            works: By name.
            repeats: Turns.
            least_s: A work is repeated within its turn for about so long.
        """
        first = {name: self.seconds(work) for name, work in works.items()}  # warm
        times = {name: max(1, round(least_s / max(one, 1e-9))) for name, one in first.items()}
        found: dict[str, list[float]] = {name: [] for name in works}
        for _ in range(repeats):
            for name, work in works.items():
                found[name].append(self.seconds(work, times=times[name]))
        return found


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Several measurements of one thing."""

    median: float
    low: float
    high: float
    repeats: int

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Sum values up."""
        each = list(values)
        return cls(median=statistics.median(each), low=min(each), high=max(each), repeats=len(each))


@dataclass(frozen=True, kw_only=True, eq=False)
class Round:
    """What clients of one round sent, and their images."""

    inputs: Tensor
    labels: Tensor
    model: nn.Module
    seen: list[Observation]
    known: list[Knowledge]


def one_round(
    name: str, width: int | None, victims: int, *, batch_size: int, root: str, device: torch.device
) -> Round:
    """Draw a network, and take the gradients that clients with the first images would send."""
    lenet = name == "dlg-lenet"
    data = load_data("cifar100" if lenet else "cifar10", root=root, options={})
    options = {} if width is None else {"width": width}
    classes = len(data.class_names)
    inner = build_model(name, (3, 32, 32), classes, rng=stream(0, "model"), options=options)
    model = inner if lenet else nn.Sequential(Normalize(*peers.CIFAR10), inner)
    model = model.eval().to(device)
    named = dict(model.named_parameters())
    count = victims * batch_size
    inputs, labels = data.test_inputs[:count].to(device), data.test_labels[:count].to(device)
    seen = []
    for place in range(0, count, batch_size):
        own = slice(place, place + batch_size)
        loss = functional.cross_entropy(model(inputs[own]), labels[own])
        slopes = torch.autograd.grad(loss, list(named.values()))
        seen.append(
            Observation(
                round=1,
                sender=f"client-{place // batch_size}",
                receiver="server",
                kind=Kind.GRADIENT,
                update=dict(zip(named, slopes, strict=True)),
                weights={key: p.detach() for key, p in named.items()},
                buffers=dict(model.named_buffers()),
                num_examples=batch_size,
            )
        )
    known = Knowledge(
        model=model,
        input_shape=(3, 32, 32),
        num_classes=classes,
        batch_size=batch_size,
        recipe=LocalRecipe(train_mode=False),
    )
    return Round(inputs=inputs, labels=labels, model=model, seen=seen, known=[known] * victims)


def closed_form_table(
    clock: Clock, root: str, *, batches: Sequence[int], repeats: int
) -> dict[str, dict[str, Any]]:
    """Return victims per second of the closed form, by how many are solved in one call."""
    most = max(batches)
    heard = one_round("dlg-lenet", None, most, batch_size=1, root=root, device=clock.device)
    attack, guesses = ClosedForm(), {}

    def solve(number: int) -> None:
        guesses[number] = attack.many(
            heard.seen[:number],
            heard.known[:number],
            rngs=[stream(index, "attack") for index in range(number)],
        )

    def errors(number: int) -> list[float]:
        return [
            float((guess.inputs - image).square().mean())
            for guess, image in zip(guesses[number], heard.inputs, strict=False)
            if not isinstance(guess, AttackFailed) and guess.inputs is not None
        ]

    works = {str(number): functools.partial(solve, number) for number in batches}
    found = clock.in_turns(works, repeats=repeats)
    return {
        f"{number} together": {
            "victims": number,
            "solved": sum(error < SUCCESS for error in errors(number)),
            "mse_median": statistics.median(errors(number)),
            "s_per_victim": asdict(Spread.of(s / number for s in found[str(number)])),
            "victims_per_s": asdict(Spread.of(number / s for s in found[str(number)])),
        }
        for number in batches
    }


def published_closure(heard: Round) -> Closure:
    """Return the loop over victims that is published with DLG: `backward` fills everything."""
    parameters = list(heard.model.parameters())

    def closure(points: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = [], []
        for point, one in zip(points, heard.seen, strict=False):
            image = point[:3072].view(1, 3, 32, 32).requires_grad_()
            logits = point[3072:].view(1, -1).requires_grad_()
            loss = functional.cross_entropy(heard.model(image), logits.softmax(dim=-1))
            guess = torch.autograd.grad(loss, parameters, create_graph=True)
            distance = torch.stack(
                [
                    (mine - theirs).square().sum()
                    for mine, theirs in zip(guess, one.update.values(), strict=True)
                ]
            ).sum()
            distance.backward()  # type: ignore[no-untyped-call]
            values.append(distance.detach())
            assert image.grad is not None
            assert logits.grad is not None
            slopes.append(torch.cat((image.grad.flatten(), logits.grad.flatten())))
        heard.model.zero_grad()
        return torch.stack(values), torch.stack(slopes)

    return closure


def our_closure(heard: Round, victims: int) -> SquaredDistances:
    """Return ours for the same points: pixels, then logits of the label."""
    company = _company(heard, victims)

    def decode(points: Tensor) -> tuple[Tensor, Tensor]:
        inputs = points[:, :3072].reshape(len(points), 1, 3, 32, 32)
        return inputs, points[:, 3072:].reshape(len(points), 1, -1).softmax(dim=-1)

    return SquaredDistances(company, decode, owners=torch.arange(victims), labels=None)


def _company(heard: Round, victims: int) -> Company:
    return company_of(
        [
            rebuild(one, known, dtype=torch.float32)
            for one, known in zip(heard.seen[:victims], heard.known[:victims], strict=True)
        ]
    )


def matching_closure(heard: Round, victims: int) -> Closure:
    """Return the objective of Inverting Gradients, labels known."""
    company = _company(heard, victims)

    def value(images: Tensor, row: Row) -> Tensor:
        assert row.labels is not None
        distance = chord(row.gradient(images, row.labels), row.target)
        return distance * (0.5 * total_variation(images, smoothing=0.01)).exp()

    labels = heard.labels.view(len(heard.seen), -1)[:victims]
    return rows_of(value, company, labels=labels)


def needed_flops(model: nn.Module, inputs: Tensor, classes: int) -> int:
    """Return the multiplications and additions of a closure, counted; see the module."""
    named = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    targets = torch.full((len(inputs), classes), 1 / classes, device=inputs.device)
    start = inputs.detach().clone().requires_grad_()
    with FlopCounterMode(display=False) as counted:
        images = start.clone()  # the counter does not bear a leaf
        own = {name: p.clone() for name, p in named.items()}
        loss = functional.cross_entropy(functional_call(model, own, (images,)), targets)
        slopes = torch.autograd.grad(loss, list(own.values()), create_graph=True)
        torch.autograd.grad(torch.stack([s.square().sum() for s in slopes]).sum(), images)
    return int(counted.get_total_flops())


def product(device: torch.device, size: int) -> tuple[Callable[[], object], int]:
    """Return a plain product of two square matrices, float32, and its operations."""
    one, other = torch.randn(2, size, size, device=device).unbind()
    return (lambda: one @ other), 2 * size**3


def closures_table(
    clock: Clock,
    heard: Round,
    *,
    batches: Sequence[int],
    modes: Sequence[str],
    repeats: int,
    beside_published: bool,
) -> dict[str, dict[str, Any]]:
    """Return what a closure costs per victim, by batch and mode."""
    batch_size = len(heard.inputs) // len(heard.seen)
    classes = heard.known[0].num_classes or 0
    flops = needed_flops(heard.model, heard.inputs[:batch_size], classes)
    plain, operations = product(clock.device, 8192 if clock.device.type == "cuda" else 1024)
    rows: dict[str, dict[str, Any]] = {}
    for number in batches:
        rng = stream(0, "points")
        if beside_published:
            points = torch.rand(number, 3072 + classes, generator=rng).to(clock.device)
            closures: dict[str, Closure] = {"published": published_closure(heard)}
            ours: Closure = our_closure(heard, number)
        else:
            points = torch.rand(number, batch_size, 3, 32, 32, generator=rng).to(clock.device)
            closures, ours = {}, matching_closure(heard, number)
        refused: dict[str, str] = {}
        for mode in modes:
            try:
                closures[mode] = in_mode(ours, mode, points)
            except Exception as failure:  # whatever the compiler says
                refused[mode] = f"{type(failure).__name__}: {str(failure).partition(chr(10))[0]}"
        works: dict[str, Callable[[], object]] = {"product": plain}
        works |= {
            name: functools.partial(_evaluate, closure, points)
            for name, closure in closures.items()
        }
        found = clock.in_turns(works, repeats=repeats, least_s=0.05)
        for name in closures:
            use = [
                flops * number / seconds / (operations / alone)
                for seconds, alone in zip(found[name], found["product"], strict=True)
            ]
            row: dict[str, Any] = {
                "victims": number,
                "ms_per_victim": asdict(Spread.of(1e3 * s / number for s in found[name])),
                "victim_steps_per_s": asdict(Spread.of(number / s for s in found[name])),
                "utilisation": asdict(Spread.of(use)),
                "needed_mflop": flops / 1e6,
                "product_gflop_per_s": asdict(
                    Spread.of(operations / s / 1e9 for s in found["product"])
                ),
            }
            if "published" in closures:
                both = zip(found["published"], found[name], strict=True)
                row["published_over_this"] = asdict(Spread.of(theirs / s for theirs, s in both))
            rows[f"{name}, {number} together"] = row
        rows |= {f"{mode}, {number} together": {"refused": why} for mode, why in refused.items()}
    return rows


def _evaluate(closure: Closure, points: Tensor) -> None:
    closure(points.clone())


def in_mode(closure: Closure, mode: str, points: Tensor) -> Closure:
    """Return the closure in a mode, after a first call.

    Raises:
        RuntimeError: The mode is not for this device, or the closure cannot be recorded.
    """
    if mode == "eager":
        return closure
    if mode == "compile":
        compiled: Closure = torch.compile(closure, dynamic=False)
        compiled(points.clone())
        return compiled
    if not points.is_cuda:
        raise RuntimeError("CUDA graphs need a GPU")
    static = points.clone()
    aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            closure(static)
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = closure(static)

    def replay(points: Tensor) -> tuple[Tensor, Tensor]:
        static.copy_(points)
        graph.replay()
        return found

    return replay


def table_of(name: str, clock: Clock, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one of the tables of this script."""
    batches, root = arguments.batches, str(arguments.data)
    if name == "profile":
        return {"rows": profile_table(root, victims=min(32, max(batches)))}
    if name == "alone-profile":
        return {"rows": profile_table(root, victims=1)}
    if name in PROFILES:
        return {"rows": closure_profile(name, root)}
    if name == "closed-form":
        return {"rows": closed_form_table(clock, root, batches=batches, repeats=arguments.repeats)}
    model: str
    width: int | None
    if name == "lenet":
        model, width, batch_size = "dlg-lenet", None, 1
    else:
        model, width, batch_size = peers.victim_model(name)
        batches = [one for one in batches if one <= arguments.most_images]
    heard = one_round(
        model, width, max(batches), batch_size=batch_size, root=root, device=clock.device
    )
    return {
        "rows": closures_table(
            clock,
            heard,
            batches=batches,
            modes=arguments.modes,
            repeats=arguments.repeats,
            beside_published=name == "lenet",
        )
    }


def profile_table(root: str, *, victims: int) -> dict[str, dict[str, Any]]:
    """Return where the closed form's time goes: shares of functions, callees included."""
    heard = one_round("dlg-lenet", None, victims, batch_size=1, root=root, device=CPU)

    def solve() -> None:
        rngs = [stream(index, "attack") for index in range(victims)]
        ClosedForm().many(heard.seen, heard.known, rngs=rngs)

    solve()  # warm
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(solve)
    spent = {
        f"{Path(file).stem}.{function}": row[3]
        for (file, _, function), row in pstats.Stats(profiler).stats.items()  # type: ignore[attr-defined]
        if Path(file).parent.name == "attacks" and not function.startswith("<")
    }
    whole = max(spent.values())
    ranked = sorted(spent, key=lambda name: -spent[name])[:20]
    return {
        name: {"share": spent[name] / whole, "ms_per_victim": 1e3 * spent[name] / victims}
        for name in ranked
    }


def closure_profile(name: str, root: str) -> dict[str, dict[str, Any]]:
    """Return where a closure's time goes, by kinds of operations, without what they call.

    The profiler's clock runs on while other programs do. So every call counts as long as the median
    of those of the same operation on the same shapes.
    """
    kind = name.removesuffix("-profile")
    lenet = kind == "lenet"
    victims = 128 if lenet else 1
    model, width = ("dlg-lenet", None) if lenet else peers.victim_model(kind)[:2]
    heard = one_round(model, width, victims, batch_size=1, root=root, device=CPU)
    shape = (3172,) if lenet else (1, 3, 32, 32)
    points = torch.rand(victims, *shape, generator=stream(0, "points"))
    closure: Closure = our_closure(heard, victims) if lenet else matching_closure(heard, victims)
    closure(points.clone())  # warm
    repeats = 10
    with torch.profiler.profile(record_shapes=True) as profiled:
        for _ in range(repeats):
            closure(points.clone())
    calls: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in profiled.events() or ():
        calls[event.name, str(event.input_shapes)].append(event.self_cpu_time_total)
    spent: dict[str, float] = defaultdict(float)
    counted: dict[str, int] = defaultdict(int)
    for (operation, _), times in calls.items():
        which = _kind_of(operation)
        spent[which] += statistics.median(times) * len(times) / repeats
        counted[which] += len(times)
    whole = sum(spent.values())
    return {
        which: {
            "share": spent[which] / whole,
            "ms_per_victim": spent[which] / victims / 1e3,
            "calls": counted[which] // repeats,
        }
        for which in sorted(spent, key=lambda which: -spent[which])
    }


def _kind_of(operation: str) -> str:
    """Return the kind of an operation such as "aten::mm"; see `WORK`."""
    library, _, name = operation.partition("::")
    if library != "aten":
        return "bookkeeping of autograd"
    fits = (
        kind
        for kind, parts in WORK.items()
        if any(part == name or (len(part) > 3 and part in name) for part in parts)
    )
    return next(fits, "element by element")


def main() -> None:
    """Run tables and print them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tables", nargs="+", default=TABLES, help="see the head of the script")
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds the data sets")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8, 32, 128])
    parser.add_argument("--most-images", type=int, default=8, help="largest batch but for LeNet")
    parser.add_argument("--modes", nargs="+", choices=MODES, default=["eager"])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--breaching", help="interpreter of an environment with breaching")
    parser.add_argument("--victims", type=int, default=20, help="of the tables of peers")
    parser.add_argument("--our-steps", nargs="+", type=int, default=[50, 100, 200, 300])
    parser.add_argument("--peer-steps", nargs="+", type=int, default=[300])
    parser.add_argument("--output", type=Path, help="write everything as JSON")
    parser.add_argument("--markdown", type=Path, help="print the tables of such a JSON, and end")
    arguments = parser.parse_args()
    if arguments.markdown:
        for name, table in json.loads(arguments.markdown.read_text())["tables"].items():
            print(f"\n### {name}\n\n{markdown(table['rows'])}")
        return
    torch.set_num_threads(1)
    clock = Clock(device=torch.device(arguments.device))
    record: dict[str, Any] = {"tables": {}}
    if arguments.output and arguments.output.is_file():  # tables that are not run now stay
        record = json.loads(arguments.output.read_text())
    is_cuda = clock.device.type == "cuda"
    device = torch.cuda.get_device_name(clock.device) if is_cuda else "CPU"
    with tempfile.TemporaryDirectory() as folder:
        peer = peers.Breaching(arguments.breaching, Path(folder)) if arguments.breaching else None
        for name in arguments.tables:
            print(f"\n{name}", flush=True)
            if name == "dlg" or ("-" in name and name not in TABLES):
                found = peers.table_of(
                    name,
                    peer,
                    str(arguments.data),
                    victims=arguments.victims,
                    our_steps=arguments.our_steps,
                    peer_steps=arguments.peer_steps,
                )
            else:
                found = table_of(name, clock, arguments)
            found["environment"] = environment() | {"device": device}
            record["tables"][name] = found
            print(markdown(found["rows"]), flush=True)
            if "ratios" in found:
                print(json.dumps(found["ratios"], indent=1), flush=True)
            if arguments.output:
                arguments.output.write_text(json.dumps(record, indent=1))
        if peer is not None:
            peer.close()


if __name__ == "__main__":
    main()
