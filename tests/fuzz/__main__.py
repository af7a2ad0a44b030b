"""`python -m tests.fuzz --inputs 100000`: mutated inputs for each parser."""

import argparse
import json
import sys

from tests.fuzz.harness import parent, table

_BATCH = 1000
"""Inputs of each target that one child runs."""


def main() -> int:
    """Run them, print a table and every finding; the exit code says whether there was any."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--inputs", type=int, default=2000, help="in all, over all targets")
    arguments.add_argument("--first", type=int, default=0, help="number of the first input")
    arguments.add_argument("--only", default="", help="targets whose name holds this")
    asked = arguments.parse_args()
    records = []
    wanted, first = asked.inputs, asked.first
    num_targets = 0
    done = 0
    while done < wanted:
        each = _BATCH if not num_targets else max(1, -(-(wanted - done) // num_targets))
        if not num_targets:
            each = min(each, max(1, wanted // 40))
        new = parent(range(first, first + min(each, _BATCH)), asked.only)
        records += new
        num_targets = len({one["target"] for one in records if "target" in one}) or 1
        first += min(each, _BATCH)
        done += sum(
            one["accepted"] + one["refused"] + one["finding"] for one in new if "target" in one
        )
        if not any("target" in one for one in new):
            break
        print(f"{done} inputs", file=sys.stderr, flush=True)  # noqa: T201
    findings = [one for one in records if "finding" in one and "target" not in one]
    print(table(records))  # noqa: T201
    for one in findings:
        print(json.dumps(one))  # noqa: T201
    print(f"{done} inputs, {len(findings)} findings")  # noqa: T201
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
