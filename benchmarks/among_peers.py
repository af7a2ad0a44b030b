"""A hundred peers for twenty rounds: what the protocol costs beside the training that it is for.

Peers on a random 4-regular graph train an MLP on the embedded digits, in one process, and one of
them, or the relay, listens; no attack is run. Beside them the same local steps run in a plain loop.

    python -m benchmarks.among_peers --output benchmarks/results/among_peers.json
    python -m benchmarks.among_peers --markdown benchmarks/results/among_peers.json
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.dlg_cifar100 import environment
from clients.local_training import local_update
from fedsim.config import Experiment, parse_experiment
from fedsim.engines.in_process import InProcess
from fedsim.records import RunDirectory
from fedsim.seeds import stream
from fedsim.setup import shares_of, task_of
from fedsim.stages.isolate import Isolator
from fedsim.stages.prepare import check, write_plan

PROTOCOLS = ("d-psgd", "gradient-sharing", "gradient-tracking", "push-sum", "gossip", "choco")
THREATS = ("curious-neighbour", "relay")


def experiment(protocol: str, threat: str, *, peers: int, rounds: int) -> Experiment:
    """Return peers on a random 4-regular graph, and who listens."""
    return parse_experiment(
        f"""
        name = "among-peers"
        rounds = {rounds}
        partition = {{ clients = {peers} }}
        data = {{ name = "digits" }}
        model = {{ name = "mlp" }}
        training = {{ batch_size = 8, learning_rate = 0.1 }}
        topology = {{ name = "random-regular", options = {{ degree = 4 }} }}
        protocol = {{ name = "{protocol}" }}
        server = {{ evaluate_every = 5 }}
        adversary = {{ threat = "{threat}" }}
        """
    )


def measure(protocol: str, threat: str, *, peers: int, rounds: int) -> dict[str, Any]:
    """Return seconds and megabytes of one federation, and of what its adversary makes of it."""
    one = experiment(protocol, threat, peers=peers, rounds=rounds)
    before = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        run = RunDirectory.create(Path(folder), one.name)
        write_plan(check(one), run)
        wall, cpu = time.perf_counter(), time.process_time()
        InProcess(one, run).train()
        trained_wall, trained_cpu = time.perf_counter() - wall, time.process_time() - cpu
        cpu = time.process_time()
        Isolator(one, run).step(trained=True)
        isolated = time.process_time() - cpu
        last = run.rounds()[-1]
        heard = len(run.observation_records())
    return {
        "protocol": protocol,
        "threat": threat,
        "wall_s": trained_wall,
        "cpu_s": trained_cpu,
        "bare_cpu_s": bare(one),
        "isolation_cpu_s": isolated,
        "updates_told_apart": heard,
        "messages_per_round": last["messages"],
        "megabytes_per_round": last["bytes_between"] / 1e6,
        "accuracy": last["accuracy"],
        "peak_mb": peak_mb(),
        "more_mb": peak_mb() - before,
    }


def bare(one: Experiment) -> float:
    """Return the CPU seconds of the same local steps in a plain loop."""
    task = task_of(one)
    shares = shares_of(one, task)
    model = task.build_model(stream(one.seed, "model"))
    inputs, labels = task.data.train_inputs, task.data.train_labels
    start = time.process_time()
    for number in range(1, one.rounds + 1):
        for peer, share in enumerate(shares):
            local_update(
                model,
                task.loss,
                inputs[share],
                labels[share],
                one.training,
                seed=one.seed,
                server_round=number,
                client=peer,
            )
    return time.process_time() - start


def peak_mb() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def markdown(result: Mapping[str, Any]) -> str:
    """Return the table of a result."""
    lines = [
        "| protocol | who listens | wall, s | CPU, s | the same steps bare, CPU s "
        "| telling apart, CPU s | updates told apart | MB per round | accuracy | peak MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['protocol']} | {row['threat']} | {row['wall_s']:.1f} | {row['cpu_s']:.1f} "
            f"| {row['bare_cpu_s']:.1f} | {row['isolation_cpu_s']:.1f} "
            f"| {row['updates_told_apart']} | {row['megabytes_per_round']:.1f} "
            f"| {100 * row['accuracy']:.1f} % | {row['peak_mb']:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, or print the table of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peers", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--protocols", nargs="+", default=list(PROTOCOLS))
    parser.add_argument("--threats", nargs="+", default=list(THREATS))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--markdown", type=Path, help="print the table of this result, and stop")
    given = parser.parse_args()
    if given.markdown is not None:
        print(markdown(json.loads(given.markdown.read_text())))
        return
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for protocol in given.protocols:
        for threat in given.threats:
            rows.append(measure(protocol, threat, peers=given.peers, rounds=given.rounds))
            result = {"peers": given.peers, "rounds": given.rounds, "rows": rows} | environment()
            if given.output is not None:  # after each, so that nothing measured is lost
                given.output.write_text(json.dumps(result, indent=1) + "\n")
            print(markdown(result).splitlines()[-1], flush=True)
    print(markdown(result))


if __name__ == "__main__":
    main()
