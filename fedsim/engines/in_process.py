"""Clients are function calls in this process: no polling, no worker, a round in milliseconds."""

from collections.abc import Sequence

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from fedsim.catalog import CLIENT_APP, CLIENTS_TOGETHER, SERVER_APP, load
from fedsim.config import Experiment
from fedsim.engines.local import FIRST_NODE, LocalGrid, answer, client_context, server_context
from fedsim.pool import AttackPool, ProcessPool
from fedsim.records import RunDirectory


class InProcessGrid(LocalGrid):
    """Nodes are contexts; to deliver a message is to call the ClientApp.

    Args:
        experiment: What to run.
        run: Where its records go.
        app: The ClientApp.
    """

    def __init__(self, experiment: Experiment, run: RunDirectory, app: ClientApp) -> None:
        super().__init__(experiment.partition.clients)
        self.app = app
        self.experiment = experiment
        self.run_directory = run
        self.contexts: dict[int, Context] = {}

    @property
    def node_of_client(self) -> dict[int, int]:
        """Node ids by client number: nobody has to ask for them."""
        return dict(enumerate(self.get_node_ids()))

    def context(self, client: int) -> Context:
        """Return the context of the node that plays a client, made when it is first needed."""
        if client not in self.contexts:
            self.contexts[client] = client_context(self.experiment, self.run_directory, client)
        return self.contexts[client]

    def deliver(self, messages: Sequence[Message], timeout: float | None) -> list[Message]:
        """Call the ClientApp for each message, in order; a function call has no timeout."""
        del timeout
        if self.experiment.engine.vectorise == "auto":
            contexts = [self.context(one.metadata.dst_node_id - FIRST_NODE) for one in messages]
            load(CLIENTS_TOGETHER)(messages, contexts)
        return [
            answer(self.app, message, self.context(message.metadata.dst_node_id - FIRST_NODE))
            for message in messages
        ]


class InProcess:
    """All clients in this process, one after another: exact, quick to start, for small models."""

    def __init__(self, experiment: Experiment, run: RunDirectory) -> None:
        self.experiment = experiment
        self.run = run

    def open_pool(self) -> AttackPool:
        """Start the processes that run attacks."""
        return ProcessPool(self.run, self.experiment.engine.attack_workers)

    def train(self) -> None:
        """Run all rounds."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as every worker of every engine, for equal bits
        try:
            grid = InProcessGrid(self.experiment, self.run, load(CLIENT_APP))
            load(SERVER_APP)(grid, server_context(self.experiment, self.run))
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """Nothing is left open."""
