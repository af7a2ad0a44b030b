"""What a client does with its chain of defenses: it changes its update before it sends it."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from attacks.observation import Tensors
from clients.local_training import LocalUpdate
from clients.memory import Memory
from clients.participant import Participant
from fedsim.defenses import Defense, Situation, UpdateDefense
from fedsim.seeds import stream
from fedsim.wire import BadReply


def defend(
    me: Participant,
    update: LocalUpdate,
    chain: Mapping[str, Defense],
    *,
    before: Tensors,
    server_round: int,
    memory: Memory,
) -> LocalUpdate:
    """Return what the client sends in place of `update`.

    New weights are taken apart: what the chain changes is how far they moved. Running statistics
    are sent as they are.

    Args:
        me: The client; its model is as local training left it.
        update: What local training came to.
        chain: The defenses, by title, in order.
        before: The parameters received, by name.
        server_round: The round.
        memory: What the client's defenses remember.

    Raises:
        BadReply: The update holds what is no number, and defenses would remember it.
    """
    links = {title: one for title, one in chain.items() if isinstance(one, UpdateDefense)}
    if not links:
        return update
    experiment = me.experiment
    kind = experiment.training.update_kind
    tensors = {name: update.tensors[name] for name in before}
    if kind == "weights":
        tensors = {name: after - before[name] for name, after in tensors.items()}
    if not all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values()):
        # raised before anything is remembered: what is left out of this update is sent later
        raise BadReply("the client's own update holds NaN or infinity: there is nothing to send")
    kept = memory.load(server_round)
    for title, defense in links.items():
        own = kept.setdefault(title, {})
        at = Situation(
            kind="gradient" if kind == "gradient" else "delta",
            model=me.model,
            before=before,
            loss=me.task.loss,
            inputs=me.inputs[update.used],
            labels=me.labels[update.used],
            learning_rate=experiment.training.learning_rate,
            server_round=server_round,
            num_rounds=experiment.rounds,
            memory=own,
            rng=stream(
                experiment.seed, "round", server_round, "client", me.number, "defense", title
            ),
        )
        tensors = defense.apply(tensors, at)
    memory.save(server_round, kept)
    if kind == "weights":
        tensors = {name: before[name] + change for name, change in tensors.items()}
    return replace(update, tensors={**update.tensors, **tensors})
