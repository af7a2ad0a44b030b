"""Every goal of speed beside what was measured; nothing is measured here.

    python -m benchmarks.performance                              # prints the tables
    python -m benchmarks.performance --page docs/performance.md   # puts them into the page

All figures come from the files in `benchmarks/results`; one that is not there is not measured.
"""

import argparse
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PART = re.compile(r"(<!-- measured: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
NOT_MEASURED = "not measured"

Results = Mapping[str, Any]
"""What the files hold, by name without ending."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A measured value.

    Attributes:
        value: The figure that the goal is about.
        low: Lowest seen.
        high: Highest seen.
        unit: Behind the figure, "x" for a ratio.
        about: What a reader should know of it.
    """

    value: float
    low: float | None = None
    high: float | None = None
    unit: str = ""
    about: str = ""

    @property
    def text(self) -> str:
        """The figure with its spread."""
        spread = (
            f" ({self.low:.3g} to {self.high:.3g})"
            if self.low is not None and self.high is not None
            else ""
        )
        about = f"; {self.about}" if self.about else ""
        return f"{self.value:.3g}{self.unit}{spread}{about}"


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What we want.

    Attributes:
        work: Of what.
        goal: The bound.
        at_most: Whether the bound is an upper one.
        unit: Of the bound.
        look: Finds the figure; raises `KeyError`, `StopIteration` or `IndexError` where it is not.
    """

    work: str
    goal: float
    at_most: bool
    look: Callable[[Results], Found]
    unit: str = ""

    def row(self, results: Results) -> str:
        """Return a row of the table."""
        bound = f"{'<=' if self.at_most else '>='} {self.goal:g}{self.unit}"
        try:
            found = self.look(results)
        except (KeyError, StopIteration, IndexError):
            return f"| {self.work} | {bound} | {NOT_MEASURED} | |"
        reached = found.value <= self.goal if self.at_most else found.value >= self.goal
        return f"| {self.work} | {bound} | {found.text} | {'reached' if reached else 'missed'} |"


def overhead(file: str, model: str, **wanted: object) -> Callable[[Results], Found]:
    """Return a look at the overhead of an engine."""

    def look(results: Results) -> Found:
        row = next(
            row
            for row in results[file]["overhead"]
            if row["model"] == model and all(row[key] == it for key, it in wanted.items())
        )
        about = f"{row['rounds']} rounds"
        return Found(value=row["overhead"], low=row["low"], high=row["high"], unit="x", about=about)

    return look


def empty(file: str, clients: int, size: int, *, own: bool = False) -> Callable[[Results], Found]:
    """Return a look at a round without work, in milliseconds.

    Args:
        file: Of the results.
        clients: That are asked.
        size: Bytes of the array.
        own: Whether clients send an array of their own, not the one that came.
    """

    def look(results: Results) -> Found:
        row = next(
            row
            for row in results[file]["empty"]
            if (row["clients"], row["bytes"], row.get("own", False)) == (clients, size, own)
        )
        seconds = (row["wall_s"], row["low_s"], row["high_s"])
        value, low, high = (1e3 * one for one in seconds)
        return Found(value=value, low=low, high=high, unit=" ms")

    return look


def scale(key: str, unit: str) -> Callable[[Results], Found]:
    """Return a look at a figure of 100,000 registered clients."""

    def look(results: Results) -> Found:
        row = next(row for row in results["scale"]["rows"] if row["clients"] == 100_000)
        return Found(value=row[key], unit=unit)

    return look


def left_behind(results: Results) -> Found:
    """Look at the memory that a long run's rounds leave behind."""
    row = max(results["scale"]["rows"], key=lambda one: int(one["rounds"]))
    return Found(value=row["mb_per_round"], unit=" MB", about=f"{row['rounds']} rounds")


def heard(model: str, clients: int) -> Callable[[Results], Found]:
    """Return a look at how much longer rounds take in which somebody listens."""

    def look(results: Results) -> Found:
        row = next(
            row
            for row in results["eavesdropping"]["rows"]
            if (row["model"], row["heard"]) == (model, clients)
        )
        wall = row["wall_s"]
        return Found(
            value=wall["ratio"],
            low=wall["ratio_low"],
            high=wall["ratio_high"],
            unit="x",
            about=f"{row['turns']} runs of each kind; {wall['stranger']:.2f}x beside a stranger",
        )

    return look


def efficiency(model: str) -> Callable[[Results], Found]:
    """Return a look at the parallel efficiency from one worker to two."""

    def look(results: Results) -> Found:
        row = next(
            row
            for row in results["on_ray"]["overhead"]
            if row["model"] == model and "efficiency" in row
        )
        return Found(value=row["efficiency"])

    return look


def vectorised(model: str) -> Callable[[Results], Found]:
    """Return a look at the gradients of a round of FedSGD, one example per client, at once."""

    def look(results: Results) -> Found:
        row = _vectorised(results, model)
        way, ratio = max(row["loop_over"].items(), key=lambda one: float(one[1]["median"]))
        return Found(
            value=ratio["median"], low=ratio["low"], high=ratio["high"], unit="x", about=way
        )

    return look


def probe(model: str) -> Callable[[Results], Found]:
    """Return a look at the slowest way that the probe chose, over the loop."""

    def look(results: Results) -> Found:
        row = _vectorised(results, model)
        about = ", ".join(f"{way} {times} times" for way, times in row["chosen"].items())
        return Found(value=row["chosen_over_loop"], unit="x", about=about)

    return look


def _vectorised(results: Results, model: str) -> Any:
    rows = results["vectorise"]["rows"]
    return next(row for row in rows if (row["model"], row["batch_size"]) == (model, 1))


def spread(table: str, row: str, key: str, unit: str = "") -> Callable[[Results], Found]:
    """Return a look at a figure of `attacks.json`."""

    def look(results: Results) -> Found:
        found = results["attacks"]["tables"][table]["rows"][row][key]
        return Found(
            value=found["median"],
            low=found["low"],
            high=found["high"],
            unit=unit,
            about=f"{found['repeats']} repeats",
        )

    return look


def dlg_success(method: str) -> Callable[[Results], Found]:
    """Return a look at the share of images right to MSE < 1e-4 in the setting of DLG."""

    def look(results: Results) -> Found:
        row = results["dlg_cifar100"]["table"][method]
        original = results["dlg_cifar100"]["table"]["published"]
        theirs = original["below_1e-4"], original["images"]
        about = f"{row['images']} images; the original {theirs[0]} of {theirs[1]}"
        return Found(value=100 * row["below_1e-4"] / row["images"], unit=" %", about=about)

    return look


def dlg_ratio(method: str, key: str) -> Callable[[Results], Found]:
    """Return a look at how much more CPU the original takes in the setting of DLG."""

    def look(results: Results) -> Found:
        return Found(value=results["dlg_cifar100"]["ratios"][method][key], unit="x")

    return look


def against_breaching(table: str) -> Callable[[Results], Found]:
    """Return a look at how much more CPU breaching takes at equal mean PSNR, the fair settings."""

    def look(results: Results) -> Found:
        files = [results[name]["tables"] for name in ("attacks", "peers") if name in results]
        found = next(tables[table] for tables in files if table in tables)
        peer, ratio = next(
            (name, ratio)
            for name, ratio in found["ratios"].items()
            if name.startswith("breaching TV")
        )
        theirs = found["rows"][peer]
        about = f"{theirs['victims']} target{'s' * (theirs['victims'] != 1)}"
        if ratio is None:  # ours would have taken longer than its longest run
            ours = max(
                (row for name, row in found["rows"].items() if name.startswith("ours")),
                key=lambda row: float(row["cpu_s_per_victim"]),
            )
            ratio = theirs["cpu_s_per_victim"] / ours["cpu_s_per_victim"]
            reached = (one["psnr_db_mean"] for one in (ours, theirs))
            about += "; at most: our longest run came to {:.1f} dB of {:.1f}".format(*reached)
        return Found(value=ratio, unit="x", about=about)

    return look


MODELS = {"lenet": "LeNet", "mlp": "MLP", "cnn": "CNN"}
ENGINE_GOALS: dict[str, tuple[str, str, dict[str, object], tuple[float, ...]]] = {
    "local": ("in-process", "engines", {"engine": "local"}, (1.10, 1.25, 1.10)),
    "flower": (
        "Flower's apps on our Grid",
        "engines",
        {"engine": "flower-on-grid"},
        (1.3, 1.8, 1.3),
    ),
    "ray": ("ray, two workers", "on_ray", {"workers": 2}, (1.25, 1.25, 1.25)),
}
ENGINES = [
    *(
        Goal(
            work=f"{name}, {MODELS[model]}: CPU over that of the bare steps",
            goal=bound,
            at_most=True,
            unit="x",
            look=overhead(file, model, **wanted),
        )
        for name, file, wanted, bounds in ENGINE_GOALS.values()
        for model, bound in zip(MODELS, bounds, strict=True)
    ),
    *(
        Goal(
            work=f"ray, {MODELS[model]}: efficiency from one worker to two",
            goal=0.85,
            at_most=False,
            look=efficiency(model),
        )
        for model in MODELS
    ),
    *(
        Goal(
            work=f"an empty round of {clients} clients, {size:,} bytes each way, {name}"
            + ("; arrays of their own" if own else ""),
            goal=goal,
            at_most=True,
            unit=" ms",
            look=empty(file, clients, size, own=own),
        )
        for name, file, clients, size, own, goal in (
            ("in-process", "engines", 50, 1024, False, 10),
            ("in-process", "engines", 1000, 1024, False, 150),
            ("ray", "on_ray", 50, 1024, False, 10),
            ("ray", "on_ray", 1000, 1024, False, 150),
            ("ray", "on_ray", 50, 6_500_000, False, 60),
            ("ray", "on_ray", 50, 6_500_000, True, 60),
        )
    ),
]
ENGINES += [
    Goal(
        work=f"100,000 registered clients: {what}",
        goal=goal,
        at_most=True,
        unit=unit,
        look=scale(key, unit),
    )
    for what, key, goal, unit in (
        ("CPU of setting up", "set_up_cpu_s", 2, " s"),
        ("memory beyond the data", "more_mb", 200, " MB"),
    )
]
ENGINES += [
    Goal(
        work="memory that a round of 50 clients, one of them heard, leaves behind",
        goal=1,
        at_most=True,
        unit=" MB",
        look=left_behind,
    ),
    *(
        Goal(
            work=f"eavesdropping on {clients} of 50, {MODELS[model]}: wall over a round unheard",
            goal=1.05,
            at_most=True,
            unit="x",
            look=heard(model, clients),
        )
        for clients, models in ((1, ("lenet", "mlp", "cnn")),)
        for model in models
    ),
]
ENGINES += [
    goal
    for model in ("lenet", "cnn")
    for goal in (
        Goal(
            work=f"FedSGD, 50 gradients of one example, {MODELS[model]}: loop over all at once",
            goal=4,
            at_most=False,
            unit="x",
            look=vectorised(model),
        ),
        Goal(
            work=f"the same, {MODELS[model]}: what the probe chose over the loop",
            goal=1.05,
            at_most=True,
            unit="x",
            look=probe(model),
        ),
    )
]
ATTACKS = [
    *(
        Goal(
            work=f"setting of DLG, {name}: images right to MSE < 1e-4",
            goal=100,
            at_most=False,
            unit=" %",
            look=dlg_success(method),
        )
        for name, method in (("closed form", "closed form"), ("iDLG", "idlg"), ("DLG", "dlg"))
    ),
    *(
        Goal(
            work=f"the same: CPU per success of the original over that of {name}",
            goal=goal,
            at_most=False,
            unit="x",
            look=dlg_ratio(method, "cpu_s_per_success"),
        )
        for name, method, goal in (
            ("the closed form", "closed form", 300),
            ("iDLG", "idlg", 5),
            ("DLG", "dlg", 5),
        )
    ),
    Goal(
        work="closed form, 128 clients of one round: victims per CPU second",
        goal=60,
        at_most=False,
        look=spread("closed-form", "128 together", "victims_per_s"),
    ),
    Goal(
        work="closures of 128 clients' LeNets: the published loop over ours",
        goal=6,
        at_most=False,
        unit="x",
        look=spread("lenet", "eager, 128 together", "published_over_this", "x"),
    ),
    Goal(
        work="utilisation of that closure",
        goal=0.35,
        at_most=False,
        look=spread("lenet", "eager, 128 together", "utilisation"),
    ),
    Goal(
        work="utilisation of a closure of Inverting Gradients, ConvNet of width 16, one victim",
        goal=0.5,
        at_most=False,
        look=spread("convnet16", "eager, 1 together", "utilisation"),
    ),
    *(
        Goal(
            work=f"Inverting Gradients, {name}: CPU of breaching over ours at equal mean PSNR",
            goal=8,
            at_most=False,
            unit="x",
            look=against_breaching(table),
        )
        for name, table in (
            ("ConvNet of width 16, one image", "convnet16-1"),
            ("ConvNet of width 64, one image", "convnet-1"),
            ("ConvNet of width 64, four images", "convnet-4"),
            ("ResNet-18 of width 16, one image", "resnet-1"),
            ("ResNet-18 of width 16, four images", "resnet-4"),
        )
    ),
]


def markdown(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a table for a page: one row per name, spreads as median (lowest to highest)."""
    keys = list(dict.fromkeys(key for row in rows.values() for key in row))
    lines = ["| | " + " | ".join(keys) + " |", "|---" * (len(keys) + 1) + "|"]
    for name, row in rows.items():
        lines.append(f"| {name} | " + " | ".join(_cell(row.get(key)) for key in keys) + " |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, Mapping):
        return f"{value['median']:.3g} ({value['low']:.3g} to {value['high']:.3g})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def read(folder: Path) -> Results:
    """Return what was measured, by the name of its file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def goals_table(goals: list[Goal], results: Results) -> str:
    """Return goals beside figures."""
    head = ["| work | goal | measured | |", "|---|---|---|---|"]
    return "\n".join([*head, *(goal.row(results) for goal in goals)])


def profile_table(results: Results, name: str) -> str:
    """Return where time goes: the closed form's, or a closure's."""
    tables = results.get("attacks", {}).get("tables", {})
    return markdown(tables[name]["rows"]) if name in tables else NOT_MEASURED


def matching_profiles(results: Results) -> str:
    """Return where the time of closures of Inverting Gradients goes."""
    titles = {"convnet16-profile": "ConvNet of width 16", "resnet-profile": "ResNet-18 of width 16"}
    return "\n\n".join(
        f"**{title}, one image**\n\n{profile_table(results, name)}"
        for name, title in titles.items()
    )


def engine_profile(results: Results) -> str:
    """Return where the CPU of a round goes: ms, and their share of the bare steps' CPU."""
    rows = results.get("engine_profile", {}).get("rows", [])
    if not rows:
        return NOT_MEASURED
    names = [f"{ENGINE_NAMES[row['engine']]}, {MODELS[row['model']]}" for row in rows]
    titles = dict.fromkeys(title for row in rows for title in row["sections_ms"])
    lines = {
        "the same steps bare": [f"{row['bare_ms']:.0f}" for row in rows],
        "**the whole round**": [_over(row["round_ms"], row["bare_ms"]) for row in rows],
    }
    for title in titles:
        lines[title] = [_over(row["sections_ms"].get(title), row["bare_ms"]) for row in rows]
    head = ["| CPU ms a round (over the bare steps) | " + " | ".join(names) + " |"]
    head.append("|---" * (len(rows) + 1) + "|")
    return "\n".join([*head, *(f"| {one} | {' | '.join(cells)} |" for one, cells in lines.items())])


def _over(milliseconds: float | None, bare: float) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.1f} ({milliseconds / bare:.3f})"


def vectorise_tables(results: Results) -> str:
    """Return what gradients of many clients at once take, and on which operations."""
    rows = results.get("vectorise", {}).get("rows", [])
    if not rows:
        return NOT_MEASURED
    times = {
        f"{MODELS[row['model']]}, batches of {row['batch_size']}": {
            **{f"{way}, ms": ms for way, ms in row["ms"].items()},
            "writing as much memory, ms": row["ms_to_write_as_much"],
        }
        for row in rows
    }
    lines = ["| fastest way | operations of PyTorch, by their own share of its CPU |", "|---|---|"]
    for row in rows:
        shares = ", ".join(f"`{name}` {100 * one:.0f} %" for name, one in row["profile"].items())
        lines.append(f"| {MODELS[row['model']]}: {row['profile_of']} | {shares} |")
    return markdown(times) + "\n\n" + "\n".join(lines)


ENGINE_NAMES = {"local": "in-process", "ray": "ray, two workers"}
SIMULATOR_NAMES = {
    "in-process": "ours, in-process",
    "flower-on-grid": "Flower's apps on our Grid",
    "flower": "Flower's apps in Flower's own simulation",
    "pfl": "pfl-research",
}


def simulators_table(results: Results) -> str:
    """Return what a round costs in other simulators and in ours, over the bare steps."""
    found = results.get("simulators")
    if found is None:
        return NOT_MEASURED
    cells = {
        (row["simulator"], row["model"]): f"{row['overhead']:.3g}x "
        f"({row['low']:.3g} to {row['high']:.3g}); {row['rounds']} rounds"
        for row in found["rows"]
    }
    lines = [
        f"| CPU of a round over the bare steps | {' | '.join(MODELS.values())} |",
        "|---" * (len(MODELS) + 1) + "|",
    ]
    for simulator, name in SIMULATOR_NAMES.items():
        row = (cells.get((simulator, model), NOT_MEASURED) for model in MODELS)
        lines.append(f"| {name} | {' | '.join(row)} |")
    ours = {name: found[name] for name in ("python", "torch")} | found["versions"]
    theirs: Results = next((row["versions"] for row in found["rows"] if "versions" in row), {})
    for title, versions in (("Ours and Flower", ours), ("pfl-research", theirs)):
        if versions:
            named = ", ".join(f"{name} {version}" for name, version in versions.items())
            lines += ["", f"{title}: {named}."]
    return "\n".join(lines)


def closures_table(results: Results) -> str:
    """Return what attacks cost by batch, as `benchmarks.attacks` left it."""
    tables = results.get("attacks", {}).get("tables", {})
    parts = []
    for name, title in TITLES.items():
        parts.append(f"**{title}**")
        parts.append(markdown(tables[name]["rows"]) if name in tables else NOT_MEASURED)
    return "\n\n".join(parts)


TITLES = {
    "closed-form": "Closed form, victims of one round in the setting of DLG",
    "lenet": "One closure by squared distance, LeNet of DLG",
    "convnet16": "One closure of Inverting Gradients, ConvNet of width 16",
    "resnet": "One closure of Inverting Gradients, ResNet-18 of width 16",
}
"""Tables of `attacks.json` that the page shows."""


def eavesdropping_tables(found: Mapping[str, Any]) -> str:
    """Return what eavesdropping costs the training, and where."""
    lines = [
        "| model | updates kept, of 50 | wall, ms per round | without an ear | ratio, median of "
        "turns (lowest to highest) | CPU of the training process, ratio | without an ear beside a "
        "stranger, ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        wall, cpu = row["wall_s"], row["cpu_s"]
        lines.append(
            f"| {row['model']} | {row['heard']} | {1e3 * wall['heard']:.0f} "
            f"| {1e3 * wall['deaf']:.0f} | {wall['ratio']:.2f} ({wall['ratio_low']:.2f} to "
            f"{wall['ratio_high']:.2f}) of {row['turns']} | {cpu['ratio']:.2f} "
            f"| {wall['stranger']:.2f} ({wall['stranger_low']:.2f} to "
            f"{wall['stranger_high']:.2f}) |"
        )
    if "profile" in found:
        lines += [
            "",
            f"What an update that is kept costs two threads, {found['profiled']}; what a function "
            "calls counts for it, too:",
            "",
            "| thread | function | ms more per update |",
            "|---|---|---|",
        ]
        lines += [
            f"| {thread} | `{one['function']}` | {one['ms_more_per_update']:.2f} |"
            for thread, functions in found["profile"].items()
            for one in functions
        ]
    return "\n".join(lines)


def fill(page: str, results: Results) -> str:
    """Return a page with its tables made anew.

    Raises:
        KeyError: The page asks for a table that there is not.
    """
    parts = {
        "engines": goals_table(ENGINES, results),
        "attacks": goals_table(ATTACKS, results),
        "simulators": simulators_table(results),
        "engine-profile": engine_profile(results),
        "vectorise": vectorise_tables(results),
        "eavesdropping": (
            eavesdropping_tables(results["eavesdropping"])
            if "eavesdropping" in results
            else NOT_MEASURED
        ),
        "closures": closures_table(results),
        "profile": profile_table(results, "profile"),
        "alone-profile": profile_table(results, "alone-profile"),
        "lenet-profile": profile_table(results, "lenet-profile"),
        "matching-profile": matching_profiles(results),
    }
    return PART.sub(lambda found: f"{found[1]}{parts[found['name']]}\n{found[3]}", page)


def main() -> None:
    """Print the tables, or write them into a page."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--page", type=Path, help="page whose tables are made anew")
    arguments = parser.parse_args()
    results = read(arguments.results)
    if arguments.page is None:
        print(goals_table(ENGINES + ATTACKS, results))
        return
    arguments.page.write_text(fill(arguments.page.read_text(), results))


if __name__ == "__main__":
    main()
