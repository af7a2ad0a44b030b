"""A run on real processes: SuperLink, a SuperNode per client, and their apps, on this machine."""

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from cryptography.hazmat.primitives.asymmetric import ec

from fedsim.config import Experiment
from fedsim.deployment import DEPLOYED_CLIENT_APP, DEPLOYED_SERVER_APP, parts, processes
from fedsim.deployment.certificates import Certificates, issue, node_key
from fedsim.deployment.flower_private import Control
from fedsim.deployment.parts import HOST, Site
from fedsim.deployment.processes import Part
from fedsim.engines.ending import Ending
from fedsim.errors import RunFailed
from fedsim.pool import AttackPool, ProcessPool
from fedsim.proxy import LINKS_TAPPED, taps_links
from fedsim.proxy.listening import rounds_heard
from fedsim.records import RunDirectory
from fedsim.wire import run_config

START_S = 120.0
"""Seconds that a part may take to be there; Python imports much, and machines may be busy."""
LOOK_S = 0.05
"""Seconds between two looks at the parts."""
MOST_RESTARTS = 3
"""Times that a part is started again in a run, before it is left where it is."""


@dataclass
class _Node:
    """A SuperNode.

    Attributes:
        number: The client that it plays.
        port: Of its Runtime API.
        superlink: HOST:PORT where it reaches the SuperLink, or what stands before it.
        part: Its process; None once it is given up.
        key_file: Where its key lies; None where nodes have none.
        key: The key.
        id: How the SuperLink knows it.
        restarts: Times that it was started again.
    """

    number: int
    port: int
    superlink: str
    part: Part | None = None
    key_file: Path | None = None
    key: ec.EllipticCurvePrivateKey | None = None
    id: int = 0
    restarts: int = 0


@dataclass(kw_only=True)
class _Federation:
    """What runs while a run is under way.

    Attributes:
        site: Where its things are.
        address: Of the SuperLink.
        certificates: What the SuperLink shows; None without TLS.
        superlink: Its process.
        server_app: The process of the ServerApp.
        ending: Tells how that ended.
        executor: The process of the ClientApps.
        tap: The process of who listens on links; None where nobody does.
        nodes: SuperNodes, by number.
        restarts: Times that the executor was started again.
    """

    site: Site
    address: str
    certificates: Certificates | None
    superlink: Part
    server_app: Part
    ending: Ending
    executor: Part
    tap: Part | None = None
    nodes: list[_Node] = field(default_factory=list)
    restarts: int = 0

    def end(self) -> None:
        """End all parts; nodes first, who would look for a SuperLink that is gone."""
        nodes = [node.part for node in self.nodes if node.part is not None]
        processes.end([self.server_app, self.executor, *nodes])
        processes.end([self.superlink] if self.tap is None else [self.tap, self.superlink])


class Deployment:
    """Flower's own processes on this machine, with TLS and keys: a real federation."""

    def __init__(self, experiment: Experiment, run: RunDirectory) -> None:
        self.experiment = experiment
        self.run = run

    def open_pool(self) -> AttackPool:
        """Start the processes that run attacks."""
        return ProcessPool(self.run, self.experiment.engine.attack_workers)

    def close(self) -> None:
        """Nothing is left open."""

    def train(self) -> None:
        """Run all rounds.

        Raises:
            RunFailed: A part did not start, or ended early; what all parts said is in `logs/`.
        """
        logs = self.run.root / "logs"
        shutil.rmtree(logs, ignore_errors=True)  # of an earlier try of the same run
        logs.mkdir()
        with tempfile.TemporaryDirectory(prefix="fedsim-deploy-") as folder, ExitStack() as stack:
            federation = self._start(Site(Path(folder), logs), stack)
            self._oversee(federation)
        shutil.rmtree(logs)

    def rounds_heard(self) -> Iterable[int] | None:
        """Return the rounds of which a tap on links heard everything; None without one."""
        return range(1, rounds_heard(self.run) + 1) if taps_links(self.experiment) else None

    # starting

    def _start(self, site: Site, stack: ExitStack) -> _Federation:
        clients = self.experiment.partition.clients
        tapped = taps_links(self.experiment)
        port, *ports = processes.free_ports(1 + (2 if tapped else 1) * clients)
        node_ports, tap_ports = ports[:clients], ports[clients:]
        address = f"{HOST}:{port}"
        certificates = issue(site.home / "certificates") if self.experiment.engine.tls else None
        authority = certificates.authority if certificates else None
        # all at once: most of a start is imports
        federation = _Federation(
            site=site,
            address=address,
            certificates=certificates,
            superlink=parts.start_superlink(site, port, certificates),
            server_app=parts.start_server_app(site, address, authority),
            ending=Ending(self.run, site.home),
            executor=parts.start_executor(site, node_ports, self.experiment),
            tap=parts.start_tap(site, address, tap_ports, self.run.root) if tapped else None,
            nodes=[
                _Node(number, one, f"{HOST}:{tap_ports[number]}" if tapped else address)
                for number, one in enumerate(node_ports)
            ],
        )
        stack.callback(federation.end)
        processes.wait_until(
            lambda: processes.answers(address), federation.superlink, timeout_s=START_S
        )
        if federation.tap is not None:
            meeting_point = federation.nodes[-1].superlink
            processes.wait_until(
                lambda: processes.answers(meeting_point), federation.tap, timeout_s=START_S
            )
        with obeyed(), Control(address, authority, site.secret.read_bytes()) as control:
            for node in federation.nodes:
                if certificates is not None:
                    node.key_file = site.home / f"node-{node.number}.key"
                    node.key = node_key(node.key_file)
                    node.id = control.register(node.key.public_key()) or 0  # all keys are new
                self._start_node(federation, node)
            control.start(self._project(federation.ending))
        return federation

    def _start_node(self, federation: _Federation, node: _Node) -> None:
        certificates = federation.certificates
        node.part = parts.start_supernode(
            federation.site,
            node.number,
            of=self.experiment.partition.clients,
            superlink=node.superlink,
            port=node.port,
            authority=certificates.authority if certificates else None,
            key=node.key_file,
        )

    def _project(self, ending: Ending) -> dict[str, object]:
        """Return the project file of an app that names our two components, and nothing else."""
        app = {
            "publisher": "fedsim",
            "components": {"serverapp": DEPLOYED_SERVER_APP, "clientapp": DEPLOYED_CLIENT_APP},
            "config": run_config(self.experiment, self.run)
            | ending.config
            | {LINKS_TAPPED: taps_links(self.experiment)},
        }
        project = {"name": "fedsim-run", "version": "1.0.0", "dependencies": []}
        return {"project": project, "tool": {"flwr": {"app": app}}}

    # while it runs

    def _oversee(self, federation: _Federation) -> None:
        """Wait for the end of the run, and start again what dies of what can be started again.

        Raises:
            RunFailed: The ServerApp failed, or a part ended that the run cannot do without.
        """
        while federation.server_app.ended is None:
            if federation.superlink.ended is not None:
                raise _gone(federation.superlink)
            if federation.tap is not None and federation.tap.ended is not None:
                raise _gone(federation.tap)
            if federation.executor.ended is not None:
                self._replace_executor(federation)
            for node in federation.nodes:
                if node.part is not None and node.part.ended is not None:
                    self._replace_node(federation, node, node.part)
            time.sleep(LOOK_S)
        check_end(federation.server_app, federation.ending)

    def _replace_node(self, federation: _Federation, node: _Node, part: Part) -> None:
        if not self.run.rounds():  # nothing was trained yet: it never came to be
            raise _gone(part)
        processes.end([part])
        node.part = None
        again = node.key is not None and node.restarts < MOST_RESTARTS
        self.run.append_event(
            "node-lost",
            f"the SuperNode of client {node.number} ended with code {part.ended}; "
            + ("it is started again" if again else "the run goes on without it"),
            client=node.number,
        )
        if node.key is None:  # without keys it would be another node to the SuperLink
            return
        authority = federation.certificates.authority if federation.certificates else None
        secret = federation.site.secret.read_bytes()
        with suppress(httpx.HTTPError), Control(federation.address, authority, secret) as control:
            control.declare_lost(node.id, node.key)  # or else Flower notices after a minute
        if again:
            node.restarts += 1
            self._start_node(federation, node)

    def _replace_executor(self, federation: _Federation) -> None:
        part = federation.executor
        if not self.run.rounds() or federation.restarts == MOST_RESTARTS:
            raise _gone(part)
        processes.end([part])
        self.run.append_event(
            "executor-lost",
            f"what plays the clients ended with code {part.ended}; it is started again",
        )
        federation.restarts += 1
        ports = [node.port for node in federation.nodes]
        federation.executor = parts.start_executor(federation.site, ports, self.experiment)


@contextmanager
def obeyed() -> Iterator[None]:
    """Raise `RunFailed` where a SuperLink refuses an order, or cannot be reached."""
    try:
        yield
    except httpx.HTTPError as error:
        why = str(error).partition("\n")[0] or type(error).__name__
        raise RunFailed(f"the SuperLink did not do as it was told: {why}") from error


def check_end(server_app: Part, ending: Ending) -> None:
    """Raise `RunFailed` if the ServerApp ended before training was over."""
    if not ending.good:
        raise RunFailed(ending.reason) if ending.reason else _gone(server_app)


def _gone(part: Part) -> RunFailed:
    return RunFailed(f"{part.name} ended with code {part.ended}; it said:\n{part.last_words()}")
