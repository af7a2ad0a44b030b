"""D-PSGD in each of its orders, against closed forms."""

from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from fedsim.protocols.d_psgd import DecentralisedPSGD
from fedsim.protocols.peer_protocol import MessageKind, Parcel
from fedsim.protocols.simulate import Faults, place, play_round, simulate
from tests.fedsim.protocols.playing import (
    Graph,
    complete,
    models,
    own_starts,
    play,
    quadratics,
    random_graph,
    ring,
    same_starts,
)

Order = Literal["adapt-then-combine", "combine-then-adapt", "at-once"]
ORDERS: tuple[Order, ...] = ("adapt-then-combine", "combine-then-adapt", "at-once")


def test_on_a_complete_graph_with_uniform_weights_it_is_sgd_of_the_mean() -> None:
    losses, protocol = quadratics(5), DecentralisedPSGD()

    played = play(protocol, complete(5), same_starts(5), losses.gradient, rounds=6)

    model = same_starts(1)[0]
    for one in played:
        model = model - 0.1 * sum(losses.gradient(peer, 1, model) for peer in range(5)) / 5
        after = models(protocol, one)
        torch.testing.assert_close(after, model.expand(5, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_each_order_is_its_recursion(order: Order) -> None:
    losses, network, protocol = quadratics(6), random_graph(6, 2), DecentralisedPSGD(order=order)
    mixing = torch.from_numpy(network.mixing(1))
    x = torch.stack(own_starts(6))

    def gradient(at: torch.Tensor) -> torch.Tensor:
        return losses.curvatures[:, None] * (at - losses.centers)

    for one in play(protocol, network, own_starts(6), losses.gradient, rounds=5):
        said = x - 0.1 * gradient(x) if order == "adapt-then-combine" else x
        mean = mixing @ said
        x = {
            "adapt-then-combine": mean,
            "combine-then-adapt": mean - 0.1 * gradient(mean),
            "at-once": mean - 0.1 * gradient(x),
        }[order]
        torch.testing.assert_close(models(protocol, one), x, rtol=0, atol=1e-12)
        for message in one.said:
            torch.testing.assert_close(message.parcel.tensors["model"], said[message.sender])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("network", [ring(8), random_graph(9, 3)], ids=["ring", "chords"])
def test_disagreement_shrinks_at_the_rate_of_the_second_eigenvalue(
    order: Order, network: Graph
) -> None:
    protocol = DecentralisedPSGD(order=order)

    played = play(protocol, network, own_starts(network.num_peers), rounds=80)

    away = [models(protocol, one) - models(protocol, one).mean(0) for one in played]
    rate = float((away[-1].norm() / away[-21].norm()) ** (1 / 20))
    second = np.sort(np.abs(np.linalg.eigvalsh(network.mixing(1))))[-2]
    assert rate == pytest.approx(second, rel=0.05)


def test_a_round_goes_on_without_a_peer_that_failed() -> None:
    losses, starts, protocol = quadratics(4), own_starts(4), DecentralisedPSGD()

    played = play_round(
        protocol,
        complete(4),
        [protocol.begin(start) for start in starts],
        losses.gradient,
        1,
        learning_rate=0.1,
        faults=Faults(failed={(1, 2): 0}),
    )

    stepped = [starts[peer] - 0.1 * losses.gradient(peer, 1, starts[peer]) for peer in (0, 1, 3)]
    after = models(protocol, played)
    assert torch.equal(after[2], starts[2])
    mean = torch.stack(stepped).mean(0)
    torch.testing.assert_close(after[[0, 1, 3]], mean.expand(3, -1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("order", ORDERS)
def test_changes_of_weights_are_added_where_peers_train_by_themselves(order: Order) -> None:
    starts, protocol = own_starts(4), DecentralisedPSGD(order=order)

    (played,) = simulate(
        protocol,
        complete(4),
        starts,
        lambda peer, _, model: torch.full_like(model, peer),
        rounds=1,
        learning_rate=9.0,
        moves_weights=True,
    )

    mean = torch.stack(starts).mean(0) + (0 + 1 + 2 + 3) / 4
    torch.testing.assert_close(models(protocol, played).mean(0), mean)


def test_weights_of_neighbours_that_were_not_heard_go_to_the_others() -> None:
    star = Graph(num_peers=5, links=[(0, peer) for peer in range(1, 5)])
    here = replace(
        place(star, 0, 1, range(5), learning_rate=0.1, seed=0),
        weights={0: 0.5, 1: 0.125, 2: 0.125, 3: 0.125, 4: 0.125},
    )
    said = Parcel(kind=MessageKind.MODEL, tensors={"model": torch.tensor([3.0])})

    after = DecentralisedPSGD().listen({"model": torch.tensor([0.0])}, {2: [said]}, here)

    torch.testing.assert_close(after["model"], torch.tensor([3.0 * 0.125 / (0.5 + 0.125)]))
