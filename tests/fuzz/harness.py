"""Runs mutated inputs through every parser, in a process with a limit on memory and on time.

The child says where it is before each input, so that a crash or a hang names the input. An input
is made from the name of its target and its number alone, so any of them can be run again.
"""

import json
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.fuzz.mutate import as_document, mutated

MEMORY = 512 * 2**20
"""Bytes of address space that the child may take beyond what it has before the first input."""
CPU_S = 2.0
"""Seconds of computing that one input may take."""
SILENCE_S = 900.0
"""Seconds after which a child that says nothing is taken for hung, in C code for one; on a machine
that is busy with other things it may have to wait for long."""


class TooLong(BaseException):
    """An input took longer than it may."""


def seed_of(name: str, number: int) -> random.Random:
    """Return the source of randomness of one input."""
    return random.Random(f"{name}|{number}")


def parent(numbers: range, only: str = "") -> list[dict[str, Any]]:
    """Run inputs in a child; return a record of each target, and of each finding."""
    records: list[dict[str, Any]] = []
    last = "nothing"
    # in memory where there is such a place: what is fuzzed is what reads, and not the disk
    shared = Path("/dev/shm")
    home = str(shared) if shared.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="fedsim-fuzz-", dir=home) as folder:
        command = [sys.executable, "-m", "tests.fuzz.harness", folder]
        child = subprocess.Popen(
            [*command, str(numbers.start), str(numbers.stop), only],
            stdout=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        for line in _lines(child):
            record = json.loads(line)
            if "at" in record:
                last = record["at"]
            else:
                records.append(record)
    if child.returncode:
        records.append({"finding": f"the process ended with {child.returncode}", "input": last})
    return records


def _lines(child: "subprocess.Popen[str]") -> Iterator[str]:
    """Yield what a child says; it is killed when it has said nothing for too long."""
    assert child.stdout is not None
    try:
        while True:
            watchdog = threading.Timer(SILENCE_S, child.kill)
            watchdog.start()
            line = child.stdout.readline()
            watchdog.cancel()
            if not line:
                break
            yield line
        child.wait()
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def child(folder: Path, numbers: range, only: str) -> None:
    """Run inputs `numbers` of every target, and print what came of them."""
    from tests.fuzz.parser import Target, Unbuildable
    from tests.fuzz.targets import targets

    def alarm(*_: object) -> None:
        raise TooLong

    def run(target: Target, number: int) -> str:
        rng = seed_of(target.name, number)
        tree = mutated(rng.choice(target.seeds), rng)
        if target.form == "document":
            tree = as_document(tree, rng)
        if isinstance(target.seeds[0], bytes) and not isinstance(tree, bytes):
            return "unbuildable"
        signal.setitimer(signal.ITIMER_PROF, CPU_S)
        try:
            target.feed(tree)
        except Unbuildable:
            return "unbuildable"
        except target.refusals as error:
            return "finding" if _ran_out(error) else "refused"
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        return "accepted"

    signal.signal(signal.SIGPROF, alarm)
    found = [one for one in targets(folder) if only in one.name]
    for target in found:
        for seed in target.seeds:  # loads whatever is loaded at the first call
            target.feed(as_document(seed, seed_of("", 0)) if target.form == "document" else seed)
    _limit_memory()
    for target in found:
        counts = {"accepted": 0, "refused": 0, "unbuildable": 0, "finding": 0}
        slowest, start = 0.0, time.process_time()
        for number in numbers:
            if number % 200 == 0:
                _say({"at": f"{target.name} {number}"})
            before = time.process_time()
            try:
                what = run(target, number)
                if what == "finding":
                    _say({"finding": "it ran out of memory", "input": [target.name, number]})
            except (Exception, TooLong) as error:
                what = "finding"
                trail = traceback.extract_tb(error.__traceback__)[-1]
                _say(
                    {
                        "finding": f"{type(error).__name__}: {error!s:.200}",
                        "input": [target.name, number],
                        "at_line": f"{Path(trail.filename).name}:{trail.lineno}",
                    }
                )
            counts[what] += 1
            slowest = max(slowest, time.process_time() - before)
        _say(
            {
                "target": target.name,
                **counts,
                "slowest_s": round(slowest, 4),
                "seconds": round(time.process_time() - start, 3),
                "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            }
        )


def _say(record: dict[str, Any]) -> None:
    print(json.dumps(record), flush=True)  # noqa: T201


def _ran_out(error: BaseException | None) -> bool:
    """Whether a refusal hides that there was no room: the limit was reached after all."""
    while error is not None:
        if isinstance(error, MemoryError) or "not enough memory" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False


def _limit_memory() -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def table(records: Sequence[dict[str, Any]]) -> str:
    """Return a table of targets, as Markdown."""
    rows = ["| what is parsed | inputs | accepted | refused | findings | slowest |"]
    rows.append("| --- | --- | --- | --- | --- | --- |")
    sums: dict[str, list[float]] = {}
    for one in records:
        if "target" not in one:
            continue
        new = [one[key] for key in ("accepted", "refused", "finding")]
        old = sums.setdefault(one["target"], [0, 0, 0, 0.0])
        sums[one["target"]] = [
            *(a + b for a, b in zip(old, new, strict=False)),
            max(old[3], one["slowest_s"]),
        ]
    for name, (accepted, refused, findings, slowest) in sums.items():
        total = int(accepted + refused + findings)
        rows.append(
            f"| {name} | {total} | {accepted} | {refused} | {findings} | {slowest * 1000:.0f} ms |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    child(Path(sys.argv[1]), range(int(sys.argv[2]), int(sys.argv[3])), sys.argv[4])
