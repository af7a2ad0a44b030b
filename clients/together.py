"""Gradients of many clients in one pass, where all stand at the same weights (FedSGD).

A round of FedSGD asks each client for one gradient at the weights that all were sent. Small batches
leave a processor idle between small operations; with the clients as one more axis there are as many
operations as for one client. The sums run in another order, so that gradients differ in the last
bits from those computed one by one: experiments ask for it by `engine.vectorise = "auto"`.

Which way is fastest, if any pays, depends on model, batch and machine, so that a probe decides, and
the run keeps what it decided: a run that is gone on with has the same bits. Two runs of one seed
may differ in the last bits.
"""

import functools
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence

import torch
from flwr.app import Context, Message, MessageType
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn.modules.batchnorm import _BatchNorm

from attacks.observation import Loss
from clients import layerwise
from clients.local_training import batches, gradient_of_batch
from clients.participant import Way, Workplace, workplace
from fedsim.defenses import TrainingDefense, build_chain
from fedsim.records import RunDirectory
from fedsim.wire import (
    EXPERIMENT,
    PARTITION,
    ROUND,
    BadReply,
    arrays_in,
    config_in,
    read_run_directory,
    shared_buffers,
)

CHUNK = 16
"""Clients of one pass where more make tensors that leave the processor's cache."""
LARGE_CHUNK = 64
"""Clients of one pass where passes cost most, not what they make."""
GAIN = 0.95
"""Share of the loop's time that another way may take, at most, to be chosen."""
ROUNDING = 1e-3
"""Distance from the loop's gradient, over its length, up to which another is the same gradient."""

TURNS = 3
"""Tries of each way, and as many more of the best."""
LOOP = "loop"
"""Every client by itself."""
DECIDED = "gradients-at-once"
"""Kind of the event that tells which way a run takes."""

ONE_BY_ONE = "gradients-one-by-one"
"""Kind of the event that tells that the way broke; what is wrong with a client it says itself."""

Answer = tuple[dict[str, Tensor], float]
"""Gradient by name of parameter, and mean loss."""
Batches = Sequence[tuple[Tensor, Tensor]]
"""Inputs (B, ...) and labels (B,) of each client, all of one shape."""


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
    if not asked:
        return
    place = workplace(str(asked[0][1].run_config[EXPERIMENT]))
    place.ready.clear()
    one_model = len({id(arrays_in(message.content)) for message, _ in asked}) == 1
    if len(asked) < 2 or not one_model or not _takes(place):
        return
    try:
        place.ready.update(_answers(place, asked))
    except BadReply:  # each client will say so
        return
    except Exception as error:  # the model or the data may be the user's
        place.ready.clear()
        place.at_once, place.probed = None, True
        run = read_run_directory(asked[0][1].run_config, config_in(asked[0][0].content))
        if run is not None:
            reason = f"{type(error).__name__}: {error}"
            run.append_event(ONE_BY_ONE, f"gradients are computed one by one: {reason}")


def _answers(
    place: Workplace, asked: Sequence[tuple[Message, Context]]
) -> dict[tuple[int, int], Answer]:
    """Return gradients and losses by round and client; nothing where the loop is to find them."""
    place.load(arrays_in(asked[0][0].content))
    place.model.train()
    config = config_in(asked[0][0].content)
    server_round = int(str(config[ROUND]))
    numbers = [int(str(context.node_config[PARTITION])) for _, context in asked]
    drawn = [_batch(place, number, server_round) for number in numbers]
    if not place.probed:
        run = read_run_directory(asked[0][1].run_config, config)
        place.at_once = _decided(run, place, drawn)
        place.probed = True
    if place.at_once is None:
        return {}
    answers = place.at_once(place.model, place.loss, drawn)
    return {(server_round, number): one for number, one in zip(numbers, answers, strict=True)}


def _decided(run: RunDirectory | None, place: Workplace, drawn: Batches) -> Way | None:
    """Return the way that this run has taken before, or else the fastest, which is an event."""
    if run is not None:
        for event in reversed(run.events()):
            if event["kind"] == DECIDED and event.get("way") in (LOOP, *WAYS):
                return WAYS.get(str(event["way"]))
    way = fastest(place.model, place.loss, drawn)
    name = next((name for name, one in WAYS.items() if one is way), LOOP)
    if run is not None:
        run.append_event(DECIDED, f"gradients of a round are computed by: {name}", way=name)
    return way


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


def by_vmap(model: nn.Module, loss: Loss, drawn: Batches) -> list[Answer]:
    """Return the gradient and the loss of each batch: passes with the clients as one more axis."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def value(weights: dict[str, Tensor], inputs: Tensor, labels: Tensor) -> Tensor:
        return loss(functional_call(model, weights, (inputs,)), labels)

    inputs, labels = _stacked(drawn)
    whole = vmap(grad_and_value(value), in_dims=(None, 0, 0), chunk_size=CHUNK)
    gradients, losses = whole(trained, inputs, labels)
    return _split(gradients, losses)


def layer_by_layer(
    model: nn.Module, loss: Loss, drawn: Batches, *, chunk: int = LARGE_CHUNK
) -> list[Answer]:
    """Return the same out of passes that do not know whose an example is; see `layerwise`.

    Raises:
        Untraceable: The model is none of which that is known.
    """
    answers: list[Answer] = []
    for start in range(0, len(drawn), chunk):
        inputs, labels = _stacked(drawn[start : start + chunk])
        answers += _split(*layerwise.gradients(model, loss, inputs, labels))
    return answers


def one_by_one(model: nn.Module, loss: Loss, drawn: Batches) -> list[Answer]:
    """Return the same, each by a pass of its own."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    answers = [gradient_of_batch(model, trained, loss, *batch) for batch in drawn]
    return [(gradient, float(value)) for gradient, value in answers]


WAYS: dict[str, Way] = {
    "vmap": by_vmap,
    "layers": layer_by_layer,
    "layers of few clients": functools.partial(layer_by_layer, chunk=CHUNK),
}
"""What a probe tries beside the loop."""


def _stacked(drawn: Batches) -> tuple[Tensor, Tensor]:
    return torch.stack([one for one, _ in drawn]), torch.stack([one for _, one in drawn])


def _split(gradients: Mapping[str, Tensor], losses: Tensor) -> list[Answer]:
    return [
        ({name: stacked[place] for name, stacked in gradients.items()}, loss)
        for place, loss in enumerate(losses.tolist())
    ]


def fastest(model: nn.Module, loss: Loss, drawn: Batches) -> Way | None:
    """Return the way that takes clearly less time than the loop; None if none does.

    All are tried in turn on batches of the round, and the best of them once more against the loop;
    one whose gradients are not the loop's is left out, for a model may do what it was not made for.
    """
    some = drawn[:LARGE_CHUNK]
    ways: dict[str, Way] = {LOOP: one_by_one, **_sound(model, loss, some)}
    tries: dict[str, list[float]] = {name: [] for name in ways}

    def take_turns(names: Iterable[str]) -> None:
        for _ in range(TURNS):
            for name in names:
                tries[name].append(_timed(ways[name], model, loss, some))

    take_turns(ways)
    best = min(tries, key=lambda name: min(tries[name]))
    if best == LOOP:
        return None
    take_turns((LOOP, best))
    pays = all(of(tries[best]) <= GAIN * of(tries[LOOP]) for of in (min, statistics.median))
    return ways[best] if pays else None


def _sound(model: nn.Module, loss: Loss, drawn: Batches) -> dict[str, Way]:
    """Return the ways that come to the loop's gradients; none of these is held afterwards."""
    alone = one_by_one(model, loss, drawn)
    return {name: way for name, way in WAYS.items() if _agrees(way, model, loss, drawn, alone)}


def _agrees(
    way: Way, model: nn.Module, loss: Loss, drawn: Batches, expected: Sequence[Answer]
) -> bool:
    """Whether a way knows this model, and comes to the gradients expected but for rounding."""
    if way is not by_vmap and not layerwise.covers(model):
        return False
    try:
        found = way(model, loss, drawn)
    except (RuntimeError, NotImplementedError):  # an operation that vmap does not know, say
        return False
    for (gradient, _), (other, _) in zip(found, expected, strict=True):
        if set(gradient) != set(other):
            return False
        size = max(float(tensor.norm()) for tensor in other.values())
        if not all(
            float((gradient[name] - tensor).norm()) <= ROUNDING * size
            for name, tensor in other.items()
        ):
            return False
    return True


def _timed(way: Way, model: nn.Module, loss: Loss, drawn: Batches) -> float:
    start = time.process_time()
    way(model, loss, drawn)
    return time.process_time() - start
