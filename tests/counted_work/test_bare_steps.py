import torch
from torch import nn

from benchmarks.bare import BATCH, STEPS, Part, bare_round, copied, deviation, mean_of_round


def clients(number: int) -> list[Part]:
    """Return noise for clients of a model with four inputs and three classes."""
    rng = torch.Generator().manual_seed(0)
    examples = STEPS * BATCH
    return [
        (torch.rand(examples, 4, generator=rng), torch.arange(examples) % 3) for _ in range(number)
    ]


def test_the_plain_loop_leaves_the_model_as_it_was() -> None:
    model, parts = nn.Linear(4, 3), clients(2)
    before = copied(model)

    spent = bare_round(model, parts)
    mean_of_round(model, parts)

    assert spent > 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_weights_deviate_by_what_a_simulator_did_otherwise() -> None:
    model, parts = nn.Linear(4, 3), clients(4)
    mean = mean_of_round(model, parts)
    one_missing = mean_of_round(model, parts[:-1])

    assert deviation(mean, model, parts) == 0
    assert deviation(one_missing, model, parts) > 1e-3  # rounding of float32 is some 1e-5
    assert abs(deviation(copied(model), model, parts) - 1) < 1e-9  # nobody trained
