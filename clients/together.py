"""Gradients of many clients in one pass, where all stand at the same weights (FedSGD).

A round of FedSGD asks each client for one gradient at the weights that all were sent. Small batches
leave a processor idle between small operations; with the clients as one more axis there are as many
operations as for one client. The sums run in another order, so that gradients differ in the last
bits from those computed one by one: experiments ask for it by `engine.vectorise = "auto"`.

Whether it pays depends on model, batch and machine, so that a probe decides, in each process.
"""

import time
from collections.abc import Callable, Sequence

import torch
from flwr.app import Context, Message, MessageType
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.observation import Loss
from clients.local_training import batches, gradient_of_batch
from clients.participant import Workplace, workplace
from fedsim.defenses import TrainingDefense, build_chain
from fedsim.wire import EXPERIMENT, PARTITION, ROUND, BadReply, arrays_in, config_in, shared_buffers

CHUNK = 16
"""Clients of one pass: more make tensors that leave the processor's cache."""
GAIN = 0.95
"""Share of the loop's time that one pass may take, at most, to be chosen."""

Answer = tuple[dict[str, Tensor], float]
"""Gradient by name of parameter, and mean loss."""


class Ready:
    """Stands where a defense of training would, and hands over a gradient computed before."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def gradient(
        self,
        model: nn.Module,  # noqa: ARG002 - the interface is that of defenses
        loss: Loss,  # noqa: ARG002
        inputs: Tensor,  # noqa: ARG002
        labels: Tensor,  # noqa: ARG002
        *,
        batch_size: int,  # noqa: ARG002
        rng: torch.Generator,  # noqa: ARG002
    ) -> Answer:
        """Return it."""
        return self.answer


def prepare(messages: Sequence[Message], contexts: Sequence[Context]) -> None:
    """Compute what these clients are about to be asked for, if that can be done at once, and pays.

    Args:
        messages: Requests, in the order of delivery.
        contexts: Of the nodes that they go to.
    """
    asked = [
        (message, context)
        for message, context in zip(messages, contexts, strict=True)
        if message.metadata.message_type == MessageType.TRAIN
    ]
    if len(asked) < 2 or len({id(arrays_in(message.content)) for message, _ in asked}) > 1:
        return
    place = workplace(str(asked[0][1].run_config[EXPERIMENT]))
    place.ready.clear()
    if not _takes(place):
        return
    try:
        place.load(arrays_in(asked[0][0].content))
    except BadReply:  # each client will say so
        return
    place.model.train()
    server_round = int(str(config_in(asked[0][0].content)[ROUND]))
    numbers = [int(str(context.node_config[PARTITION])) for _, context in asked]
    drawn = [_batch(place, number, server_round) for number in numbers]
    if len({inputs.shape for inputs, _ in drawn}) > 1:  # somebody has less than one batch
        return
    if place.at_once is None:
        place.at_once = pays(place.model, place.loss, drawn)
    if place.at_once:
        answers = at_once(place.model, place.loss, drawn)
        keys = [(server_round, number) for number in numbers]
        place.ready.update(zip(keys, answers, strict=True))


def _takes(place: Workplace) -> bool:
    """Whether one pass is the same mathematics: no client's pass may leave anything behind."""
    return (
        place.experiment.training.algorithm == "fedsgd"
        and place.loss is place.task.loss
        and not shared_buffers(place.model)
        and not any(
            isinstance(module, _BatchNorm | nn.modules.dropout._DropoutNd | nn.RReLU)
            for module in place.model.modules()
        )
        and not any(
            isinstance(one, TrainingDefense) for one in build_chain(place.experiment).values()
        )
    )


def _batch(place: Workplace, number: int, server_round: int) -> tuple[Tensor, Tensor]:
    inputs, labels = place.examples(number)
    experiment = place.experiment
    (batch,) = batches(
        len(inputs),
        experiment.training,
        seed=experiment.seed,
        server_round=server_round,
        client=number,
    )
    return inputs[batch], labels[batch]


def at_once(model: nn.Module, loss: Loss, drawn: Sequence[tuple[Tensor, Tensor]]) -> list[Answer]:
    """Return the gradient and the loss of each batch at the weights of `model`.

    Args:
        model: Its modules must leave no state behind.
        loss: Mean over the batch.
        drawn: Inputs (B, ...) and labels (B,) of each client, all of one shape.
    """
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def value(weights: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return loss(functional_call(model, weights, (inputs,)), labels)

    inputs = torch.stack([one for one, _ in drawn])
    labels = torch.stack([one for _, one in drawn])
    whole = vmap(grad_and_value(value), in_dims=(None, 0, 0), chunk_size=CHUNK)
    gradients, losses = whole(trained, inputs, labels)
    return [
        ({name: stacked[place] for name, stacked in gradients.items()}, float(losses[place]))
        for place in range(len(drawn))
    ]


def one_by_one(
    model: nn.Module, loss: Loss, drawn: Sequence[tuple[Tensor, Tensor]]
) -> list[Answer]:
    """Return the same as `at_once`, each by a pass of its own."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    answers = [gradient_of_batch(model, trained, loss, *batch) for batch in drawn]
    return [(gradient, float(value)) for gradient, value in answers]


def pays(model: nn.Module, loss: Loss, drawn: Sequence[tuple[Tensor, Tensor]]) -> bool:
    """Whether one pass took clearly less time than one per client, when both were tried in turn."""
    some = drawn[: 2 * CHUNK]
    together, alone = [], []
    for _ in range(4):
        try:
            together.append(_timed(at_once, model, loss, some))
        except (RuntimeError, NotImplementedError):  # an operation that vmap does not know
            return False
        alone.append(_timed(one_by_one, model, loss, some))
    return min(together[1:]) <= GAIN * min(alone[1:])  # the first makes what the others use


def _timed(
    way: Callable[[nn.Module, Loss, Sequence[tuple[Tensor, Tensor]]], object],
    model: nn.Module,
    loss: Loss,
    drawn: Sequence[tuple[Tensor, Tensor]],
) -> float:
    start = time.process_time()
    way(model, loss, drawn)
    return time.process_time() - start
