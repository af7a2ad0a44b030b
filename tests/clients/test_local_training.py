"""What a client computes, against closed forms and a training loop written out."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.observation import Tensors
from clients.local_training import LocalUpdate, batches, local_update
from fedsim.config import TrainingConfig

WHERE = {"seed": 0, "server_round": 1, "client": 2}


@pytest.fixture
def inputs(rng: torch.Generator) -> Tensor:
    """Ten tiny images."""
    return torch.rand(10, 1, 2, 2, generator=rng)


@pytest.fixture
def labels() -> Tensor:
    """Their labels."""
    return torch.arange(10) % 3


def network(*more: nn.Module) -> nn.Sequential:
    """A network that is the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Flatten(), nn.Linear(4, 5), *more, nn.Tanh(), nn.Linear(5, 3))


def update(
    inputs: Tensor,
    labels: Tensor,
    training: TrainingConfig,
    *,
    model: nn.Module | None = None,
    server_round: int = 1,
    proximal_mu: float = 0.0,
) -> LocalUpdate:
    """Train `network` for one round."""
    return local_update(
        network() if model is None else model,
        functional.cross_entropy,
        inputs,
        labels,
        training,
        seed=0,
        server_round=server_round,
        client=2,
        proximal_mu=proximal_mu,
    )


def fedavg(**settings: object) -> TrainingConfig:
    return TrainingConfig.model_validate({"algorithm": "fedavg", "batch_size": 4} | settings)


def gradient(model: nn.Module, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """The gradient of the mean loss, written out."""
    model.zero_grad()
    functional.cross_entropy(model(inputs), labels).backward()  # type: ignore[no-untyped-call]
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }


def same(first: Tensors, second: Tensors) -> bool:
    """Whether two collections of tensors are equal to the bit."""
    return set(first) == set(second) and all(torch.equal(first[n], second[n]) for n in first)


def close(first: Tensors, second: Tensors) -> None:
    torch.testing.assert_close(dict(first), dict(second))


# batches


def test_fedsgd_draws_one_batch_of_different_examples() -> None:
    [batch] = batches(10, TrainingConfig(batch_size=4, local_epochs=3), **WHERE)

    assert batch.shape == (4,)
    assert len(set(batch.tolist())) == 4


def test_fedavg_passes_over_all_examples_in_a_new_order_each_time() -> None:
    drawn = list(batches(10, fedavg(local_epochs=2), **WHERE))

    assert [len(batch) for batch in drawn] == [4, 4, 2, 4, 4, 2]
    first, second = torch.cat(drawn[:3]), torch.cat(drawn[3:])
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(10))
    assert first.tolist() != second.tolist()


def test_fedavg_stops_after_its_most_steps_even_within_a_pass() -> None:
    everything = list(batches(10, fedavg(local_epochs=2), **WHERE))
    limited = list(batches(10, fedavg(local_epochs=2, max_local_steps=4), **WHERE))

    assert len(limited) == 4
    assert all(torch.equal(a, b) for a, b in zip(limited, everything, strict=False))


def test_batches_depend_on_seed_round_and_client_and_on_nothing_else() -> None:
    def drawn(seed: int, server_round: int, client: int) -> tuple[int, ...]:
        torch.rand(seed + 7)  # whatever others draw
        found = batches(100, fedavg(), seed=seed, server_round=server_round, client=client)
        return tuple(torch.cat(list(found)).tolist())

    places = [(0, 1, 2), (1, 1, 2), (0, 2, 2), (0, 1, 3)]
    assert len({drawn(*place) for place in places}) == 4
    assert drawn(0, 1, 2) == drawn(0, 1, 2)


# fedsgd


def test_a_gradient_is_that_of_the_mean_loss_over_the_batch_used(
    inputs: Tensor, labels: Tensor
) -> None:
    done = update(inputs, labels, TrainingConfig(batch_size=4))

    expected = gradient(network(), inputs[done.used], labels[done.used])
    assert same(done.tensors, expected)
    loss = functional.cross_entropy(network()(inputs[done.used]), labels[done.used])
    assert done.train_loss == loss.item()


def test_a_parameter_without_influence_has_a_gradient_of_zero(
    inputs: Tensor, labels: Tensor
) -> None:
    model = network()
    model.register_parameter("idle", nn.Parameter(torch.ones(2)))

    done = update(inputs, labels, TrainingConfig(), model=model)

    assert done.tensors["idle"].tolist() == [0, 0]


@pytest.mark.parametrize("returns", ["gradient", "delta"])
def test_a_frozen_layer_is_sent_as_zero_and_the_others_as_ever(
    inputs: Tensor, labels: Tensor, returns: str
) -> None:
    model = network()
    model.get_submodule("1").requires_grad_(False)
    fedsgd = TrainingConfig(batch_size=4)
    one_step = fedavg(max_local_steps=1, learning_rate=1.0, returns="delta")

    done = update(inputs, labels, fedsgd if returns == "gradient" else one_step, model=model)

    expected = gradient(network(), inputs[done.used], labels[done.used])
    sign = 1 if returns == "gradient" else -1
    for name, tensor in expected.items():
        wanted = torch.zeros_like(tensor) if name.startswith("1.") else sign * tensor
        torch.testing.assert_close(done.tensors[name], wanted)
    assert not any(tensor.requires_grad for tensor in done.tensors.values())


def test_running_statistics_go_beside_a_gradient_and_belong_to_it(
    inputs: Tensor, labels: Tensor
) -> None:
    model = network(nn.BatchNorm1d(5))

    done = update(inputs, labels, TrainingConfig(batch_size=4), model=model)
    mean = done.buffers["2.running_mean"].clone()
    update(inputs, labels, TrainingConfig(batch_size=4), model=model)

    linear = network(nn.BatchNorm1d(5))[1]
    features = linear(inputs[done.used].flatten(1)).mean(0)
    torch.testing.assert_close(mean, 0.1 * features)  # momentum 0.1, from zero
    assert torch.equal(done.buffers["2.running_mean"], mean)


# fedavg


def test_one_step_of_fedavg_moves_the_weights_against_the_gradient(
    inputs: Tensor, labels: Tensor
) -> None:
    training = fedavg(max_local_steps=1, learning_rate=0.5)

    moved = update(inputs, labels, training.model_copy(update={"returns": "delta"}))
    weights = update(inputs, labels, training)

    before = dict(network().named_parameters())
    expected = gradient(network(), inputs[moved.used], labels[moved.used])
    close(moved.tensors, {name: -0.5 * expected[name] for name in expected})
    close(weights.tensors, {name: before[name] + moved.tensors[name] for name in before})


def test_many_steps_with_momentum_are_those_of_a_loop_written_out(
    inputs: Tensor, labels: Tensor
) -> None:
    training = fedavg(local_epochs=2, learning_rate=0.5, momentum=0.9)

    done = update(inputs, labels, training)

    model = network()
    velocity: dict[str, Tensor] = {}
    losses = []
    plan = list(batches(10, training, **WHERE))
    for batch in plan:
        loss = functional.cross_entropy(model(inputs[batch]), labels[batch])
        losses += [loss.item()] * len(batch)
        steps = gradient(model, inputs[batch], labels[batch])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                velocity[name] = steps[name] + 0.9 * velocity.get(name, torch.zeros(()))
                parameter.sub_(0.5 * velocity[name])
    close(done.tensors, dict(model.named_parameters()))
    assert done.used.tolist() == list(range(10))
    assert done.train_loss == pytest.approx(sum(losses) / len(losses))


def test_fedprox_pulls_towards_the_weights_received(inputs: Tensor, labels: Tensor) -> None:
    training = fedavg(max_local_steps=2, learning_rate=0.5)

    done = update(inputs, labels, training, proximal_mu=0.3)

    model = network()
    first, second = batches(10, training, **WHERE)
    for batch in (first, second):
        steps = gradient(model, inputs[batch], labels[batch])
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                away = parameter - dict(network().named_parameters())[name]
                parameter.sub_(0.5 * (steps[name] + 0.3 * away))
    close(done.tensors, dict(model.named_parameters()))


def test_fedprox_without_a_pull_is_fedavg_to_the_bit(inputs: Tensor, labels: Tensor) -> None:
    plain = update(inputs, labels, fedavg())

    assert same(update(inputs, labels, fedavg(), proximal_mu=0.0).tensors, plain.tensors)
    assert not same(update(inputs, labels, fedavg(), proximal_mu=0.1).tensors, plain.tensors)


def test_weights_carry_the_running_statistics_after_training(
    inputs: Tensor, labels: Tensor
) -> None:
    model = network(nn.BatchNorm1d(5))

    done = update(inputs, labels, fedavg(), model=model)

    assert done.buffers == {}
    assert same(
        {name: done.tensors[name] for name in ("2.running_mean", "2.running_var")},
        {name: model.state_dict()[name] for name in ("2.running_mean", "2.running_var")},
    )
    assert "2.num_batches_tracked" not in done.tensors


# randomness


@pytest.mark.parametrize("training", [TrainingConfig(batch_size=4), fedavg()])
def test_dropout_repeats_and_leaves_the_global_generator_alone(
    inputs: Tensor, labels: Tensor, training: TrainingConfig
) -> None:
    state = torch.get_rng_state()

    first = update(inputs, labels, training, model=network(nn.Dropout()))
    torch.rand(3)
    second = update(inputs, labels, training, model=network(nn.Dropout()))
    later = update(inputs, labels, training, model=network(nn.Dropout()), server_round=2)

    assert same(first.tensors, second.tensors)
    assert not same(first.tensors, later.tensors)
    torch.set_rng_state(state)
    update(inputs, labels, training, model=network(nn.Dropout()))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_model_left_in_evaluation_mode_still_trains(inputs: Tensor, labels: Tensor) -> None:
    plain = update(inputs, labels, fedavg(), model=network(nn.BatchNorm1d(5)))

    assert same(
        update(inputs, labels, fedavg(), model=network(nn.BatchNorm1d(5)).eval()).tensors,
        plain.tensors,
    )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_local_steps_come_to_the_bits_of_pytorchs_own_sgd(
    inputs: Tensor, labels: Tensor, momentum: float
) -> None:
    training = fedavg(momentum=momentum, learning_rate=0.3, local_epochs=2)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=momentum)
    for batch in batches(10, training, seed=0, server_round=1, client=2):
        optimizer.zero_grad()
        functional.cross_entropy(model(inputs[batch]), labels[batch]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    found = update(inputs, labels, training)

    assert same(found.tensors, {name: p.detach() for name, p in model.named_parameters()})
