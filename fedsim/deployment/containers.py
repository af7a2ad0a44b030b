"""What the containers of `docker-compose.yml` run: `python -m fedsim.deployment.containers ROLE`.

- `prepare` makes the certificates and the secret that server and director share, once.
- `node` claims a number, and plays that client: a SuperNode and its executor.
- `direct` waits for the nodes, lets them in, runs the experiment, scores and reports.
- `attack` attacks what the run records, from another container, without network, truth and scores.

The SuperLink and the page are programs of their own and run as they are. Each of them has the parts
of the run directory that it needs, by volumes with the same path everywhere: `Places`.
"""

import argparse
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from fedsim.deployment import parts, processes
from fedsim.deployment.certificates import issue, write_secret
from fedsim.deployment.engine import LOOK_S, START_S, Deployment, check_end, obeyed
from fedsim.deployment.enrolment import Enrolled, enrol, gathered, welcome
from fedsim.deployment.flower_private import Control
from fedsim.deployment.parts import Site
from fedsim.deployment.processes import Part
from fedsim.deployment.spool import SpoolPool, SpoolWorker, folder_of, tell_end
from fedsim.engines.ending import Ending
from fedsim.errors import FedsimError, RunFailed
from fedsim.files import read_json, replace_bytes
from fedsim.pool import AttackPool, ProcessPool
from fedsim.proxy.listening import only_encrypted
from fedsim.records import RunDirectory

LOG = logging.getLogger("fedsim")

DIRECTED = "fedsim.deployment.containers:Directed"
"""The engine of a run whose parts are containers, by reference."""
SETTLE_S = 6.0
"""Seconds in which no further node enrolled, after which those who did are all."""
GATHER_S = 300.0
"""Seconds that nodes have to enrol."""
NODE_PORT = 9094
"""Where a SuperNode's executor reaches it, inside its container."""
HEAR_OUT_S = 10.0
"""Seconds that a tap on links has to write down what crossed last."""
TAP = "tap"
"""Host name of who listens on links: certificates name it, and it relays what it cannot read."""
ASK_S = 5.0
"""Seconds between two looks whether the SuperLink is there."""
ABSENT_S = 120.0
"""Seconds without an answer from it, after which the run is given up; it can be gone on with."""
SPARE = timedelta(days=2)
"""A certificate that is good for less is made anew."""
SECRET_BYTES = 32
TOLD = ("environment.json", "public_sample.safetensors", "knowledge.json", "config.toml")
"""What of a run's documents attackers are told; the last one comes last."""
DONE, BAD_INPUT, FAILED, INTERRUPTED = 0, 2, 3, 130
"""Exit codes, as of the commands."""


@dataclass(frozen=True)
class Places:
    """Where things lie in every container, each in a volume of its own.

    Attributes:
        root: The folder of all.
        superlink: HOST:PORT of the SuperLink, or of what stands before it.
        tls: Whether nodes and server speak TLS, and nodes show keys.
    """

    root: Path = Path("/srv")
    superlink: str = "superlink:8000"
    tls: bool = True

    @classmethod
    def here(cls) -> "Places":
        """Return the places that the environment names, where it does."""
        return cls(
            Path(os.environ.get("FEDSIM_PLACES", cls.root)),
            os.environ.get("FEDSIM_SUPERLINK", cls.superlink),
            os.environ.get("FEDSIM_INSECURE", "") != "1",
        )

    @property
    def run(self) -> Path:
        """The run directory: the records, and within them volumes of what not all may see."""
        return self.root / "runs" / "demo"

    @property
    def authority(self) -> Path | None:
        """Certificate of who signed the SuperLink's; None without TLS."""
        return self.root / "authority" / "authority.crt" if self.tls else None

    @property
    def server_key(self) -> Path:
        """What the SuperLink alone may see."""
        return self.root / "server-key"

    @property
    def secret(self) -> Path:
        """What the SuperLink and the ServerApp share."""
        return self.root / "secret" / "executor.secret"

    @property
    def enrolment(self) -> Path:
        """Where nodes claim numbers."""
        return self.root / "enrolment"

    @property
    def told(self) -> Path:
        """What attackers are told of the run, who see nothing of its other documents."""
        return self.root / "told"

    @property
    def node(self) -> Path:
        """What one node alone may see, and finds again when it is started again."""
        return self.root / "node"


# prepare


def prepare(places: Places) -> None:
    """Make certificates and the secret where there are none, or none that are good for long."""
    if not places.secret.is_file():
        write_secret(places.secret, os.urandom(SECRET_BYTES))
    authority = places.root / "authority" / "authority.crt"
    if (until := _good_until(authority, places.server_key)) is not None:
        LOG.info("the certificates are good until %s", until)
        return
    # the authority is published last: where there is one, all that it signed is there
    authority.unlink(missing_ok=True)
    for path in places.server_key.glob("*"):
        path.unlink()
    host = places.superlink.rpartition(":")[0]
    made = issue(places.server_key, names=(host, TAP, "localhost", "127.0.0.1"))
    replace_bytes(authority, made.authority.read_bytes())
    LOG.info("made an authority, and a certificate for %s", host)


def _good_until(authority: Path, folder: Path) -> datetime | None:
    """Return how long the certificates in a folder are good; None if they are of no use."""
    try:
        signer = x509.load_pem_x509_certificate(authority.read_bytes())
        shown = x509.load_pem_x509_certificate((folder / "server.crt").read_bytes())
        key = load_pem_private_key((folder / "server.key").read_bytes(), password=None)
        shown.verify_directly_issued_by(signer)
    except (OSError, ValueError, TypeError, InvalidSignature):
        return None
    fits = key.public_key() == shown.public_key()
    lasts = shown.not_valid_after_utc - datetime.now(UTC) > SPARE
    return shown.not_valid_after_utc if fits and lasts else None


# node


def node(places: Places, port: int = NODE_PORT) -> int:
    """Play a client until told to stop; return an exit code.

    Args:
        places: Where things lie.
        port: Where its executor reaches the SuperNode.
    """
    me = enrol(places.enrolment, places.node)
    LOG.info("this node plays client %d", me.number)
    with tempfile.TemporaryDirectory(prefix="fedsim-node-") as folder, ExitStack() as stack:
        site = Site(Path(folder), Path(folder))
        executor = parts.start_executor(site, [port])  # imports much: let it begin
        stack.callback(processes.end, [executor])
        while places.tls and not me.welcome:
            time.sleep(0.2)
        supernode = parts.start_supernode(
            site,
            me.number,
            of=me.number + 1,  # how many there will be, nobody knows yet, and nobody asks
            superlink=places.superlink,
            port=port,
            authority=places.authority,
            key=me.key if places.tls else None,
        )
        stack.callback(processes.end, [supernode])
        stack.enter_context(_told((supernode, executor)))
        while True:
            for part in (supernode, executor):
                if part.ended is not None:
                    LOG.error("%s ended with code %s", part.name, part.ended)
                    return part.ended or FAILED
            time.sleep(LOOK_S)


@contextmanager
def _told(told: Sequence[Part]) -> Iterator[None]:
    """Pass on to the container's log what parts say to theirs."""
    over = threading.Event()

    def pass_on() -> None:
        with ExitStack() as stack:
            files = [stack.enter_context(part.log.open("rb")) for part in told]
            while True:
                last = over.wait(0.5)
                for file in files:
                    sys.stdout.buffer.write(file.read())
                sys.stdout.flush()
                if last:
                    return

    thread = threading.Thread(target=pass_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# direct


class Directed(Deployment):
    """Containers: a SuperLink, SuperNodes that enrolled, and attack workers, each in its own."""

    def open_pool(self) -> AttackPool:
        """Offer attacks to whoever takes them, and take them itself if nobody does."""
        hand_over(self.run.root, Places.here().told)
        workers = self.experiment.engine.attack_workers
        return SpoolPool(
            self.run,
            stand_in=lambda: SpoolWorker(self.run, ProcessPool(self.run, workers), workers),
        )

    def train(self) -> None:
        """Run all rounds.

        Raises:
            RunFailed: The ServerApp failed; what it said is in the log of this container.
        """
        places = Places.here()
        with tempfile.TemporaryDirectory(prefix="fedsim-direct-") as folder, ExitStack() as stack:
            site = Site(Path(folder), Path(folder))
            secret = places.secret.read_bytes()
            write_secret(site.home / "executor.secret", secret)
            ending = Ending(self.run, site.home)
            server_app = parts.start_server_app(site, places.superlink, places.authority)
            stack.callback(processes.end, [server_app])
            stack.enter_context(_told([server_app]))
            processes.wait_until(
                lambda: processes.answers(places.superlink), server_app, timeout_s=START_S
            )
            with obeyed(), Control(places.superlink, places.authority, secret) as control:
                if places.tls:
                    for one in self._nodes(places):
                        _let_in(control, places.enrolment, one)
                control.start(self._project(ending))
                _await_end(server_app, control.answers)
            check_end(server_app, ending)
            self._hear_out()

    def _hear_out(self) -> None:
        """Let who listens on links, in a container of its own, write down the last rounds."""
        deadline = time.monotonic() + HEAR_OUT_S
        while (heard := self.rounds_heard()) is not None and time.monotonic() < deadline:
            if len(list(heard)) >= self.run.rounds()[-1]["round"] or only_encrypted(self.run):
                return
            time.sleep(LOOK_S)

    def _nodes(self, places: Places) -> list[Enrolled]:
        clients = self.experiment.partition.clients
        there = gathered(places.enrolment, least=clients, settle_s=0.0, timeout_s=GATHER_S)
        return there[:clients]


def _await_end(server_app: Part, answers: Callable[[], bool]) -> None:
    """Wait until the ServerApp ends; Flower's would wait for a SuperLink for ever.

    Raises:
        RunFailed: The SuperLink does not come back.
    """
    answered = asked = time.monotonic()
    while server_app.ended is None:
        time.sleep(LOOK_S)
        if time.monotonic() - asked < ASK_S:
            continue
        asked = time.monotonic()
        if answers():
            answered = time.monotonic()
        elif time.monotonic() - answered > ABSENT_S:
            raise RunFailed(f"the SuperLink has not answered for {ABSENT_S:g} s")


def _let_in(control: Control, enrolment: Path, one: Enrolled) -> None:
    node_id = control.register(one.key)
    if node_id is None:  # from before the director was started again
        LOG.info("client %d is known to the SuperLink", one.number)
    welcome(enrolment, one.number, node_id)


def direct(
    places: Places, experiment: str, overrides: Sequence[str], *, nodes: int
) -> dict[str, object]:
    """Run an experiment with as many clients as nodes enrol; return the summary.

    Args:
        places: Where things lie.
        experiment: A shipped experiment, or a file.
        overrides: `key=value` texts, as `--set` takes them.
        nodes: Nodes without which it does not start.
    """
    from fedsim import driver

    folder = places.run
    run = RunDirectory(folder)
    if run.summary.is_file() and read_json(run.summary)["status"] == "done":
        LOG.info("this run was done before; `docker compose down -v` makes room for another")
        tell_end(run, "done")
        return read_json(run.summary)
    if run.config.is_file():
        LOG.info("going on with the run in %s", folder)
        done = driver.resume(folder, watch=_Teller())
        tell_end(run, done.summary["status"])
        return done.summary
    there = gathered(places.enrolment, least=nodes, settle_s=SETTLE_S, timeout_s=GATHER_S)
    LOG.info("%d nodes enrolled", len(there))
    more = [f"engine.name={DIRECTED}", f"partition.clients={len(there)}"]
    more += [f"engine.tls={str(places.tls).lower()}"]
    for part in ("observations", "reconstructions"):
        (folder / part).mkdir(exist_ok=True)
    (folder / "truth").mkdir(mode=0o700, exist_ok=True)
    done = driver.run(experiment, overrides=[*overrides, *more], into=run, watch=_Teller())
    tell_end(run, done.summary["status"])
    return done.summary


class _Teller:
    """Says where a run stands, in a line whenever a round or an attack has ended, at most so often.

    Attributes:
        pause_s: Seconds, at least, between two lines.
    """

    pause_s = 2.0

    def __init__(self) -> None:
        self.said: tuple[str, int, int] = ("", 0, 0)
        self.next = 0.0

    def __call__(self, progress: object) -> None:
        from fedsim.driver import Progress

        if not isinstance(progress, Progress) or time.monotonic() < self.next:
            return
        newest = progress.rounds[-1]["round"] if progress.rounds else 0
        now = (progress.stage, newest, len(progress.scores))
        if now != self.said:
            self.said, self.next = now, time.monotonic() + self.pause_s
            LOG.info(
                "%s: round %d of %d, %d attacks done, %d waiting",
                progress.stage,
                newest,
                progress.plan.experiment.rounds,
                len(progress.scores),
                progress.waiting,
            )


# attack


def hand_over(source: Path, place: Path) -> None:
    """Copy what attackers are told."""
    for name in TOLD:
        if (source / name).is_file():
            replace_bytes(place / name, (source / name).read_bytes())


def attack(places: Places, workers: int) -> None:
    """Attack what a run records until it is over."""
    folder = places.run
    run = RunDirectory(folder)
    while not ((places.told / "config.toml").is_file() and folder_of(run).is_dir()):
        time.sleep(0.5)
    hand_over(places.told, folder)
    events = 0
    with ExitStack() as stack:
        pool = ProcessPool(run, workers)
        stack.callback(pool.close)
        worker = SpoolWorker(run, pool, workers)
        stack.callback(worker.end)
        LOG.info("attacking what %s records, %d at a time", folder, workers)
        while not worker.over:
            worker.step()
            for event in run.events()[events:]:  # nobody reads them here
                events += 1
                LOG.warning("%s: %s\n%s", event["kind"], event["message"], event.get("trail", ""))
            time.sleep(0.1)
    LOG.info("the run is over")


# the program


def main() -> None:
    """Read the role and its options, and play it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    roles = parser.add_subparsers(dest="role", required=True)
    roles.add_parser("prepare", help="make certificates and a secret, once")
    playing = roles.add_parser("node", help="play a client")
    playing.add_argument("--port", type=int, default=NODE_PORT, help="for its own executor")
    directing = roles.add_parser("direct", help="run an experiment")
    directing.add_argument("experiment", help="a shipped name, or a file")
    directing.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    directing.add_argument("--nodes", type=int, default=2, help="nodes, at least")
    attacking = roles.add_parser("attack", help="attack what a run records")
    attacking.add_argument("--workers", type=int, default=2, help="attacks at a time")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="%(message)s")
    LOG.setLevel(logging.INFO)
    os.umask(0o077)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that everything is ended
    places = Places.here()
    try:
        raise SystemExit(_play(places, options))
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    except FedsimError as error:
        LOG.error("%s", error)
        raise SystemExit(FAILED if isinstance(error, RunFailed) else BAD_INPUT) from None


def _play(places: Places, options: argparse.Namespace) -> int:
    if options.role == "prepare":
        prepare(places)
    elif options.role == "node":
        return node(places, options.port)
    elif options.role == "direct":
        summary = direct(places, options.experiment, options.set, nodes=options.nodes)
        LOG.info("%s; its report is %s", summary["status"], places.run / "report.html")
    else:
        attack(places, options.workers)
    return DONE


if __name__ == "__main__":
    main()
