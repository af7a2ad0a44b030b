"""What is freed stays with the process, up to a bound, until it is told to give it back."""

import json
import subprocess
import sys

import pytest

CHILD = """
import json, resource, sys
import torch
from fedsim.freed_memory import give_back_freed_memory, keep_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

def blocks(number, size):
    made = [torch.ones(size // 4) for _ in range(number)]

if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
blocks(20, 8 * 2**20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
blocks(20, 8 * 2**20)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
kept = resident() - before
give_back_freed_memory()
print(json.dumps({"faults": faults, "kept": kept, "left": resident() - before}))
"""


def found(how: str) -> dict[str, int]:
    made = subprocess.run(
        [sys.executable, "-c", CHILD, how], capture_output=True, text=True, check=True
    )
    counted: dict[str, int] = json.loads(made.stdout)
    return counted


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's own")
def test_memory_that_was_freed_is_not_asked_for_anew_until_it_is_given_back() -> None:
    plain, keeping = found("plain"), found("keep")

    pages = 20 * 8 * 2**20 // 4096
    assert keeping["faults"] < 0.5 * pages < 0.9 * pages < plain["faults"]
    assert keeping["kept"] > 20 * 7 * 2**20
    assert keeping["left"] < 16 * 2**20
