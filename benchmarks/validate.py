"""The validation table: what is published, what we measure, and whether the two agree.

    python -m benchmarks.validate                       # every row of class A and B
    python -m benchmarks.validate --rows 11 15          # some rows; the others stay as they were
    python -m benchmarks.validate --page                # docs/validation.md from the file

Results are kept in `benchmarks/results/validation.json`, row by row as they come.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from attacks.observation import AttackFailed
from benchmarks.dlg_cifar100 import DATA, environment
from benchmarks.validation.bench import Bench, Case, Row
from benchmarks.validation.table import ROWS

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "validation.json"
PAGE = ROOT / "docs" / "validation.md"
MARKS = "<!-- validation: begin -->\n", "<!-- validation: end -->"


def measured(row: Row, bench: Bench) -> dict[str, Any]:
    """Run a row and return its record."""
    wall, cpu = time.perf_counter(), time.process_time()
    record: dict[str, Any] = {"number": row.number, "cases": [], "not_run": None}
    if row.measure is None:
        record["not_run"] = row.why_not
    else:
        try:
            record["cases"] = [case_record(case) for case in row.measure(bench)]
        except AttackFailed as failed:
            record["not_run"] = f"the attack failed: {failed}"
    record["seconds"] = round(time.perf_counter() - wall, 1)
    record["cpu_s"] = round(time.process_time() - cpu, 1)
    record["environment"] = environment()
    return record


def case_record(case: Case) -> dict[str, Any]:
    """Return a case with its mean, spread and verdict; infinities become null."""
    values = list(case.values)
    mean = statistics.mean(values)
    deviation = statistics.stdev(values) if len(values) > 1 else None
    record = asdict(case) | {
        "values": values,
        "mean": mean,
        "standard_deviation": deviation,
        "verdict": verdict(case, mean),
    }
    return {key: None if value in (math.inf, -math.inf) else value for key, value in record.items()}


def verdict(case: Case, mean: float) -> str:
    """Say whether the mean lies where it is expected."""
    if case.low == -math.inf and case.high == math.inf:
        return "reported"
    return "agrees" if case.low <= mean <= case.high else "differs"


def page(records: dict[int, dict[str, Any]]) -> str:
    """Return the table for the page."""
    head = (
        "| # | attack | setting | case | published | ours: mean ± standard deviation (n) | "
        "without the update | verdict |\n|---|---|---|---|---|---|---|---|"
    )
    lines = [head]
    notes = []
    for row in ROWS:
        record = records.get(row.number)
        setting = f"{row.setting}; {row.metric}"
        if record is None or not record["cases"]:
            why = row.why_not if record is None else record["not_run"]
            why = f"not run: {why}" if why else "not run yet"
            lines.append(
                f"| {row.number} | {row.attack} | {setting} | | {row.source} | | | {why} |"
            )
            continue
        for place, case in enumerate(record["cases"]):
            first = place == 0
            known = (case["published"] or "-").replace("|", "\\|")
            lines.append(
                f"| {row.number if first else ''} | {row.attack if first else ''} | "
                f"{setting if first else ''} | {case['name']} | {known} | "
                f"{shown(case)} | {number(case['baseline'])} | {case['verdict']} |"
            )
        remarks = [f"{case['name']}: {case['note']}" for case in record["cases"] if case["note"]]
        cost = f"{record['cpu_s']:.0f} s of CPU"
        notes.append(f"- Row {row.number} ({row.source}; {cost}). " + "; ".join(remarks))
    return "\n".join(lines) + "\n\n" + "\n".join(notes) + "\n"


def shown(case: dict[str, Any]) -> str:
    """Return mean, spread and number of values of a case."""
    spread = case["standard_deviation"]
    tail = "" if spread is None else f" ± {number(spread)}"
    return f"{number(case['mean'])}{tail} ({len(case['values'])})"


def said(case: dict[str, Any]) -> str:
    """Return a line for the terminal."""
    return (
        f"{case['name']}: published {case['published'] or '-'}, ours {shown(case)}, without the "
        f"update {number(case['baseline'])}: {case['verdict']} {case['note']}"
    )


def number(value: float | None) -> str:
    """Return a figure with three digits."""
    return "-" if value is None else f"{value:.3g}"


def load() -> dict[int, dict[str, Any]]:
    """Return the records of earlier runs, by row."""
    if not RESULTS.is_file():
        return {}
    return {record["number"]: record for record in json.loads(RESULTS.read_text())["rows"]}


def save(records: dict[int, dict[str, Any]]) -> None:
    """Keep all records."""
    rows = [records[number] for number in sorted(records)]
    RESULTS.write_text(json.dumps({"rows": rows}, indent=1) + "\n")


def write_page(records: dict[int, dict[str, Any]]) -> None:
    """Put the table between the marks of the page."""
    text = PAGE.read_text()
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(before + MARKS[0] + page(records) + MARKS[1] + after)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run rows, print and keep them."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", default=str(DATA), help="folder that holds the data sets")
    parser.add_argument("--rows", type=int, nargs="*", help="default: all of class A and B")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the victims")
    parser.add_argument("--page", action="store_true", help="only write docs/validation.md")
    options = parser.parse_args(arguments)
    records = load()
    if not options.page:
        torch.set_num_threads(1)
        bench = Bench(root=options.data, scale=options.scale)
        for row in ROWS:
            if options.rows is not None and row.number not in options.rows:
                continue
            print(f"\n{row.number}. {row.attack}: {row.setting}; {row.metric}", flush=True)
            record = measured(row, bench)
            for case in record["cases"]:
                print(f"   {said(case)}")
            if record["not_run"]:
                print(f"   not run: {record['not_run']}")
            print(f"   {record['cpu_s']} s of CPU", flush=True)
            if options.scale == 1.0:
                records = load() | {row.number: record}  # another run may have added rows
                save(records)
    if options.scale == 1.0 and PAGE.is_file():
        write_page(records)


if __name__ == "__main__":
    main()
