"""One experiment on a Ray cluster of several nodes, one of which is lost while clients train.

The nodes are processes of this machine, each with a raylet, an object store and workers of its
own, which listen on the loopback address and ask for a token. Clients and attacks are spread over
them; the run is compared, bit by bit, with the same experiment in one process.

    python -m benchmarks.cluster --output benchmarks/results/cluster.json
    python -m benchmarks.cluster --markdown benchmarks/results/cluster.json
"""

import argparse
import contextlib
import json
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import ray
from ray.cluster_utils import Cluster

from benchmarks.dlg_cifar100 import environment
from fedsim.catalog import search_path
from fedsim.config import Experiment, parse_experiment
from fedsim.driver import Progress, RunResult, run
from fedsim.engines.ray import Ray, RayPool
from fedsim.engines.ray_private import keep_to_ourselves
from fedsim.files import digest, read_tensors
from fedsim.pool import AttackPool
from fedsim.records import RunDirectory

NODES = 3
TRIES = 3
"""Ray waits 30 seconds for a node to start, which a busy machine may need more of."""
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Set to 0, Ray's nodes and drivers meet on the loopback address."""


class Placed(Ray):
    """The engine, which remembers on which nodes it put its workers.

    Attributes:
        last: The one that was made last in this process.
        attackers: The node of each attack worker, by id.
    """

    last: ClassVar["Placed"]

    def __init__(self, experiment: Experiment, directory: RunDirectory) -> None:
        super().__init__(experiment, directory)
        Placed.last = self
        self.driver = str(ray.get_runtime_context().get_node_id())
        self.attackers: list[str] = []

    def open_pool(self) -> AttackPool:
        """Start the workers that run attacks, and ask where they are."""
        pool = super().open_pool()
        assert isinstance(pool, RayPool)
        self.attackers = ray.get([actor.ready.remote() for actor in pool.idle])
        return pool


def experiment(folder: Path, *, engine: str, rounds: int) -> Experiment:
    """Return a federation of forty clients, two of them eavesdropped on."""
    return parse_experiment(
        f"""
        name = "cluster"
        rounds = {rounds}
        data = {{ name = "digits" }}
        partition = {{ clients = 40 }}
        model = {{ name = "mlp", options = {{ hidden = [2000] }} }}
        training = {{ batch_size = 1 }}
        engine = {{ name = "{engine}", workers = 2, address = "auto", attack_workers = 2 }}
        adversary = {{ victims = [0, 1] }}
        output = {{ directory = "{folder}" }}
        [[attacks]]
        name = "linear"
        time_budget_s = 600
        """
    )


def outcome(result: RunResult) -> dict[str, Any]:
    """Return what must not depend on who computed it."""
    directory = RunDirectory(result.directory)
    return {
        "weights": result.summary["weights_sha256"],
        "views": directory.views_sha256(),
        "rounds": [
            {name: value for name, value in one.items() if name != "seconds"}
            for one in directory.rounds()
        ],
        "reconstructions": {
            path.name: digest(read_tensors(path)[0])
            for path in sorted((directory.root / "reconstructions").rglob("*.safetensors"))
        },
    }


class Nodes:
    """A cluster in a process of its own, which ends nodes when it is told to."""

    def __init__(self, count: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cluster", "--serve", str(count)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": search_path()},
        )
        self.address = ""

    def wait(self) -> None:
        """Return once the cluster is up.

        Raises:
            RuntimeError: It did not come up.
        """
        self.address = str(self._answer()["address"])

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):  # Ray prints, too
                answer: dict[str, Any] = json.loads(line)
                return answer
        raise RuntimeError("the process of the cluster ended")

    def lose(self, node: str) -> None:
        """End all processes of a node at once."""
        print(node, file=self.process.stdin, flush=True)
        self._answer()

    def close(self) -> None:
        """End the cluster."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """Start a cluster, and end it."""
    for tries_left in reversed(range(TRIES)):
        cluster = Nodes(count)
        try:
            cluster.wait()
            break
        except RuntimeError:
            cluster.close()
            if not tries_left:
                raise
    try:
        yield cluster
    finally:
        cluster.close()


def serve(count: int) -> None:
    """Start so many nodes, tell their address, end those that standard input names."""
    keep_to_ourselves()
    temp = tempfile.mkdtemp(prefix="fs-")  # short: sockets lie in it
    common = {"num_cpus": 1, "object_store_memory": 100 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=common | {"temp_dir": temp})
    for _ in range(count - 1):
        cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)
    print(json.dumps({"address": cluster.address}), flush=True)
    for line in sys.stdin:
        [lost] = [one for one in cluster.worker_nodes if one.node_id == line.strip()]
        cluster.remove_node(lost, allow_graceful=False)  # type: ignore[no-untyped-call]
        print(json.dumps({"lost": line.strip()}), flush=True)
    cluster.shutdown()  # type: ignore[no-untyped-call]


def measure(count: int, *, rounds: int, lose: bool) -> dict[str, Any]:
    """Run the experiment in one process and on a cluster, and compare.

    Args:
        count: Nodes, of one core each.
        rounds: Of training.
        lose: Whether a node on which clients train is lost after the first round.
    """
    lost: list[str] = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, nodes(count) as cluster:
        os.environ["RAY_ADDRESS"] = cluster.address

        def watch(progress: Progress) -> None:
            grid = Placed.last.grid
            if lose and not lost and progress.rounds and grid is not None:
                lost.append(next(one for one in grid.placed if one != Placed.last.driver))
                cluster.lose(lost[0])

        alone_s = time.perf_counter()
        alone = run(experiment(Path(folder), engine="in-process", rounds=rounds))
        alone_s = time.perf_counter() - alone_s
        spread_s = time.perf_counter()
        spread = run(
            experiment(Path(folder), engine=f"{__name__}:Placed", rounds=rounds),
            watch=watch,
        )
        spread_s = time.perf_counter() - spread_s
        engine = Placed.last
        assert engine.grid is not None
        here, there = outcome(alone), outcome(spread)
        return {
            "nodes": count,
            "rounds": rounds,
            "driver": engine.driver,
            "clients_on": engine.grid.placed,
            "attacks_on": engine.attackers,
            "lost": lost,
            "events": [one["kind"] for one in spread.events],
            "same": {name: here[name] == there[name] for name in here},
            "reconstructions": len(there["reconstructions"]),
            "weights_sha256": there["weights"],
            "seconds": {"one process": alone_s, "cluster": spread_s},
        }


def markdown(found: dict[str, Any]) -> str:
    """Return a table of what was found."""
    lines = [
        "| nodes | client workers on | attack workers on | lost | events | equal bits |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["rows"]:
        named = {node: f"node {number}" for number, node in enumerate(_named(row), start=1)}
        same = row["same"]
        lines.append(
            f"| {row['nodes']} | {', '.join(named[one] for one in row['clients_on'])} "
            f"| {', '.join(named[one] for one in row['attacks_on'])} "
            f"| {', '.join(named[one] for one in row['lost']) or 'none'} "
            f"| {', '.join(row['events']) or 'none'} "
            f"| {', '.join(name for name in same if same[name]) or 'none'}"
            f"{' (of ' + str(row['reconstructions']) + ')' if same['reconstructions'] else ''} |"
        )
    return "\n".join(lines)


def _named(row: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([row["driver"], *row["clients_on"], *row["attacks_on"]]))


def main() -> None:
    """Start nodes and measure, in a process that Ray lets join them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--markdown", type=Path)
    parser.add_argument("--nodes", type=int, default=NODES)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--lose-only", action="store_true", help="leave out the run without loss")
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(json.loads(arguments.markdown.read_text())))
        return
    if arguments.serve:
        serve(arguments.serve)
        return
    if LOOPBACK not in os.environ:  # Ray reads these when it is loaded
        ours = {LOOPBACK: "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        ours["RAY_worker_niceness"] = "0"  # else workers wait for whatever else this machine does
        command = [sys.executable, "-m", "benchmarks.cluster", *sys.argv[1:]]
        sys.exit(subprocess.run(command, env=os.environ | ours, check=False).returncode)
    found: dict[str, Any] = {"environment": environment(), "rows": []}
    for lose in [True] if arguments.lose_only else [False, True]:
        found["rows"].append(measure(arguments.nodes, rounds=arguments.rounds, lose=lose))
        if arguments.output:
            arguments.output.write_text(json.dumps(found, indent=1) + "\n")
    print(markdown(found))


if __name__ == "__main__":
    main()
