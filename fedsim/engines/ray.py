"""Clients on persistent Ray actors: on the cores of this machine, or of a cluster.

An actor keeps data and model, plays its own clients only, and gets one call per round with all of
its messages; what many messages share (the weights) is put into the object store once. Actors are
spread over the nodes of a cluster. What is lost with an actor, or with its node, is done again by
another.
"""

import contextlib
import logging
import os
import socket
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import torch
from flwr.app import Context, Message, RecordDict
from ray.exceptions import RayError

from fedsim.attacking import AttackWorker, seal_off
from fedsim.catalog import CLIENT_APP, SERVER_APP, load, search_path
from fedsim.config import Experiment
from fedsim.engines.flower_private import metadata_from, plain_metadata
from fedsim.engines.local import (
    FIRST_NODE,
    NO_REPLY,
    LocalGrid,
    answer,
    client_context,
    failure,
    server_context,
)
from fedsim.engines.parcels import (
    Content,
    Reply,
    pack_replies,
    put_together,
    take_apart,
    unpack_reply,
)
from fedsim.engines.ray_private import keep_to_ourselves, reach_out
from fedsim.errors import ConfigError, RunFailed
from fedsim.files import Record
from fedsim.pool import AttackPool, Job
from fedsim.records import RunDirectory
from fedsim.wire import num_bytes

TRIES = 2
"""Workers that may take up the messages of a round: if one dies, another does."""

INLINE = 64 * 2**10
"""Bytes up to which contents travel inside a call: a way through the object store takes longer."""


def environment(address: str) -> dict[str, Any]:
    """Return what processes of a cluster find around them."""
    variables = {"OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
    if address == "local":  # other machines have folders of their own
        variables["PYTHONPATH"] = search_path()
    return {"env_vars": variables}


class ClientWorker:
    """Plays clients inside one actor.

    Args:
        experiment: What is run, as JSON.
        root: The run directory.
        numbers: The clients that it plays.
        app: The ClientApp, by reference.
    """

    def __init__(self, experiment: str, root: str, numbers: Sequence[int], app: str) -> None:
        torch.set_num_threads(1)  # as every worker of every engine, for equal bits
        self.app = load(app)
        parsed = Experiment.model_validate_json(experiment)
        run = RunDirectory(Path(root))
        self.contexts: dict[int, Context] = {
            number: client_context(parsed, run, number) for number in numbers
        }

    def ready(self) -> str:
        """Return the id of the node that it is on, once the worker is built."""
        return str(ray.get_runtime_context().get_node_id())

    def answer(
        self, metadata: Sequence[dict[str, Any]], places: Sequence[int], *contents: Content
    ) -> list[Reply]:
        """Answer messages in order.

        Args:
            metadata: Of each message, as plain values.
            places: Which of `contents` each message carries.
            contents: The different contents, taken apart; large ones lie in the object store.
        """
        records = [put_together(content) for content in contents]
        replies = []
        for plain, place in zip(metadata, places, strict=True):
            one = metadata_from(plain)
            message = Message(records[place], metadata=one)  # type: ignore[call-overload]
            replies.append(answer(self.app, message, self.contexts[one.dst_node_id - FIRST_NODE]))
        return pack_replies(replies)


@dataclass(frozen=True)
class _Call:
    """What one worker was given of a round.

    Attributes:
        place: Which worker.
        mine: The messages it answers, as places in the round.
        tries: Workers that may take it up, this one included.
    """

    place: int
    mine: list[int]
    tries: int


class RayGrid(LocalGrid):
    """Nodes live on actors; client `n` always on actor `n mod workers`.

    Args:
        experiment: What to run.
        run: Where its records go.
        app: The ClientApp, by reference.

    Attributes:
        placed: The Ray node of each actor, by id, as of the start.
    """

    def __init__(self, experiment: Experiment, run: RunDirectory, app: str = CLIENT_APP) -> None:
        super().__init__(experiment.partition.clients)
        self.app = app
        self.experiment = experiment
        self.run_directory = run
        # a hop between peers, or a stage of secure aggregation, must not be taken twice
        stages = any(one.name == "secure-aggregation" for one in experiment.defenses)
        self.tries = 1 if experiment.decentralised or stages else TRIES
        self.size = min(experiment.engine.workers, self.num_nodes)
        self.actors = [self._start(place) for place in range(self.size)]
        # the reply timeout of a round must not have to cover the start of processes
        try:
            self.placed: list[str] = ray.get([actor.ready.remote() for actor in self.actors])
        except RayError as error:
            raise RunFailed(f"a client worker did not start: {_last_line(error)}") from error

    def _start(self, place: int, num_cpus: int = 1) -> Any:
        actor = ray.remote(ClientWorker).options(
            num_cpus=num_cpus,
            num_gpus=self.experiment.engine.client_gpus,
            scheduling_strategy="SPREAD",
            runtime_env=environment(self.experiment.engine.address),
        )
        numbers = list(range(place, self.num_nodes, self.size))
        root = str(self.run_directory.root.resolve())
        return actor.remote(self.experiment.model_dump_json(), root, numbers, self.app)

    def deliver(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        """Send each actor its messages in one call, and collect the replies.

        What a worker that dies was asked is asked of another in its place, which is an event; if
        that one dies as well, its clients miss this round (an error reply each). Peers, and clients
        of secure aggregation, miss it at once: some may have taken the step that is asked for. A
        worker that does not answer in time is replaced, and its clients' replies are missing.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        contents = {id(message.content): message.content for message in messages}
        stored = {key: _stored(content) for key, content in contents.items()}
        asked: dict[Any, _Call] = {}

        def ask(call: _Call) -> None:
            mine = [messages[index] for index in call.mine]
            asked[self._call(call.place, mine, stored)] = call

        for place in range(self.size):
            mine = [
                index
                for index, message in enumerate(messages)
                if (message.metadata.dst_node_id - FIRST_NODE) % self.size == place
            ]
            if mine:
                ask(_Call(place, mine, self.tries))
        replies: dict[int, Message] = {}
        while asked:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            ready, _ = ray.wait(list(asked), timeout=left)
            if not ready:
                break
            call = asked.pop(ready[0])
            try:
                for index, reply in zip(call.mine, ray.get(ready[0]), strict=True):
                    replies[index] = unpack_reply(reply)
            except RayError as error:
                reason = f"the worker died: {type(error).__name__}"
                self._replace(call.place)
                if call.tries > 1:
                    self._note_redone(call, reason)
                    ask(_Call(call.place, call.mine, call.tries - 1))
                    continue
                replies.update(
                    {index: failure(messages[index], NO_REPLY, reason) for index in call.mine}
                )
        for call in asked.values():  # it may never end: its clients go to a fresh worker
            self._replace(call.place)
        return [replies[index] for index in sorted(replies)]

    def _call(self, place: int, messages: Sequence[Message], stored: dict[int, Any]) -> Any:
        keys = list(dict.fromkeys(id(message.content) for message in messages))
        places = [keys.index(id(message.content)) for message in messages]
        metadata = [plain_metadata(message.metadata) for message in messages]
        return self.actors[place].answer.remote(metadata, places, *(stored[key] for key in keys))

    def _note_redone(self, call: _Call, reason: str) -> None:
        self.run_directory.append_event(
            "worker-replaced",
            f"{reason}; another does the work of its {len(call.mine)} clients again",
        )

    def _replace(self, place: int) -> None:
        ray.kill(self.actors[place])
        # where a node was lost there may be no free core: better share one than wait for ever
        free = ray.available_resources().get("CPU", 0.0)  # type: ignore[no-untyped-call]
        self.actors[place] = self._start(place, num_cpus=1 if free >= 1 else 0)

    def close(self) -> None:
        """End the actors."""
        for actor in self.actors:
            ray.kill(actor)


def _stored(content: RecordDict) -> Any:
    """Return a content as calls take it: a large one from the object store, put there once."""
    parts = take_apart(content)
    return parts if num_bytes(content) <= INLINE else ray.put(parts)


def _last_line(error: RayError) -> str:
    return str(error).strip().splitlines()[-1]


class AttackActor(AttackWorker):
    """An attack worker inside an actor; sealed off from the truth like one in a process."""

    def __init__(self, root: str) -> None:
        seal_off(Path(root))
        super().__init__(root)

    def ready(self) -> str:
        """Return the id of the node that it is on, once the worker is built."""
        return str(ray.get_runtime_context().get_node_id())


class RayPool:
    """Attack workers as Ray actors, with a share of a GPU where the experiment says so.

    Args:
        experiment: Says how many, and how much of a GPU.
        run: The run they attack.
    """

    def __init__(self, experiment: Experiment, run: RunDirectory) -> None:
        self.experiment = experiment
        self.run = run
        self.jobs: deque[Job] = deque()
        self.idle = [self._start() for _ in range(experiment.engine.attack_workers)]
        self.running: dict[Any, tuple[Any, Job, float]] = {}

    def _start(self) -> Any:
        # no CPU of its own: client workers hold those for the whole run
        actor = ray.remote(AttackActor).options(
            num_cpus=0,
            num_gpus=self.experiment.engine.attack_gpus,
            memory=1,  # Ray spreads only what asks for a share of something
            scheduling_strategy="SPREAD",
            runtime_env=environment(self.experiment.engine.address),
        )
        return actor.remote(str(self.run.root.resolve()))

    def submit(self, job: Job) -> None:
        """Queue a job; return at once."""
        self.jobs.append(job)

    @property
    def waiting(self) -> int:
        """Observations queued or being attacked."""
        running = [job for _, job, _ in self.running.values()]
        return sum(len(job.observations) for job in (*self.jobs, *running))

    def poll(self) -> list[Record]:
        """Return the answers that came since the last call, and keep the workers busy."""
        answered: list[Record] = []
        calls = list(self.running)
        ready = ray.wait(calls, num_returns=len(calls), timeout=0)[0] if calls else []
        for call in ready:
            actor, job, _ = self.running.pop(call)
            try:
                answered += ray.get(call)
                self.idle.append(actor)
            except RayError as error:
                reason = f"the attack worker died: {_last_line(error)}"
                if (again := job.again(self.run, reason)) is not None:
                    self.jobs.appendleft(again)
                else:
                    answered += job.failed(reason)
                self._replace(actor)
        for call, (actor, job, deadline) in list(self.running.items()):
            if time.monotonic() > deadline:
                del self.running[call]
                answered += job.failed(f"it did not end within {job.limit_s:g} s, and was ended")
                self._replace(actor)
        while self.idle and self.jobs:
            actor, job = self.idle.pop(), self.jobs.popleft()
            call = actor.attack.remote(job.observations, job.attack)
            self.running[call] = (actor, job, time.monotonic() + job.limit_s)
        return answered

    def _replace(self, actor: Any) -> None:
        ray.kill(actor)
        self.idle.append(self._start())

    def close(self) -> None:
        """End the workers; jobs that are not answered yet are dropped."""
        self.jobs.clear()
        for actor in [*self.idle, *(actor for actor, _, _ in self.running.values())]:
            ray.kill(actor)


class Ray:
    """Clients on persistent Ray workers, attacks on others beside them; one machine or many."""

    def __init__(self, experiment: Experiment, run: RunDirectory) -> None:
        self.experiment = experiment
        self.run = run
        self.grid: RayGrid | None = None
        self.started = not ray.is_initialized()
        if self.started:
            join_cluster(experiment.engine.address, experiment.engine.workers)
        cpus = float(ray.cluster_resources().get("CPU", 0))  # type: ignore[no-untyped-call]
        if experiment.engine.workers > cpus:
            workers = experiment.engine.workers
            self.close()
            raise ConfigError(
                f"engine.workers must be at most {cpus:g}, the CPUs of this cluster, got {workers}"
            )

    def open_pool(self) -> AttackPool:
        """Start the workers that run attacks."""
        return RayPool(self.experiment, self.run)

    def train(self) -> None:
        """Run all rounds."""
        self.grid = RayGrid(self.experiment, self.run)
        load(SERVER_APP)(self.grid, server_context(self.experiment, self.run))

    def close(self) -> None:
        """End the workers, and Ray itself if it was started here."""
        with contextlib.suppress(RayError):
            if self.grid is not None:
                self.grid.close()
        if self.started:
            ray.shutdown()


def join_cluster(address: str, workers: int) -> None:
    """Start Ray on this machine ("local"), with room for so many workers, or join a cluster.

    A cluster of this machine listens on the loopback address, without dashboard, and asks for a
    token. One that is joined is as its owner made it.

    Raises:
        ConfigError: There is no such cluster.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or Ray warns of its future
    settings: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False}
    if address == "local":
        # never without an address: a cluster that died leaves a pointer that blocks for ever
        settings |= {"num_cpus": max(workers, os.cpu_count() or 1), "include_dashboard": False}
        keep_to_ourselves()
    else:
        reach_out()
    try:
        _require_listener(address)
        ray.init(address=address, **settings)
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"engine.address: cannot join a Ray cluster at '{address}': {error}"
        ) from error


def _require_listener(address: str) -> None:
    """Find out at once whether anybody listens at HOST:PORT; Ray itself asks for minutes."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit() and "/" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=5.0).close()
