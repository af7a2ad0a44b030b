"""`python -m tests.faults --schedules 500`: random faults in small federations, by seed."""

import argparse
import collections
import contextlib
import faulthandler
import json
import shutil
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

from tests.faults.harness import play

LIMIT_S = 120.0
"""Seconds after which a schedule counts as hanging: the process says where, and ends."""


def main() -> int:
    """Run them, and print what came of them; the exit code says whether all was well."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--schedules", type=int, default=40)
    arguments.add_argument("--first", type=int, default=0, help="the first seed")
    asked = arguments.parse_args()
    torch.set_num_threads(1)
    outcomes, wrong, longest, start = [], [], 0.0, time.perf_counter()
    for seed in range(asked.first, asked.first + asked.schedules):
        folder = Path(tempfile.mkdtemp(prefix="fedsim-faults-"))
        faulthandler.dump_traceback_later(LIMIT_S, exit=True)
        begun = time.perf_counter()
        try:
            outcomes.append(play(seed, folder))
        except Exception:
            wrong.append(seed)
            print(f"schedule {seed}:\n{traceback.format_exc()}", file=sys.stderr, flush=True)  # noqa: T201
        finally:
            faulthandler.cancel_dump_traceback_later()
            with contextlib.suppress(OSError):
                shutil.rmtree(folder)
        longest = max(longest, time.perf_counter() - begun)
    faults: collections.Counter[str] = collections.Counter()
    for one in outcomes:
        faults.update(one.faults)
    told = {
        "schedules": asked.schedules,
        "wrong": wrong,
        "completed": sum(one.ended == "completed" for one in outcomes),
        "stopped": dict(
            collections.Counter(
                one.ended.partition(":")[2][:60] for one in outcomes if one.ended != "completed"
            )
        ),
        "killed and gone on with": sum(one.killed for one in outcomes),
        "federations": dict(collections.Counter(one.federation for one in outcomes)),
        "faults": sum(faults.values()),
        "by kind": dict(sorted(faults.items())),
        "rounds": sum(one.rounds for one in outcomes),
        "rounds whose weights were computed anew": sum(one.updated for one in outcomes),
        "changes without a sign": sum(one.silent for one in outcomes),
        "longest schedule, s": round(longest, 1),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(told, indent=1))  # noqa: T201
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
