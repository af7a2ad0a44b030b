"""Push-sum, against what it must conserve."""

from dataclasses import replace

import torch

from fedsim.protocols.peer_protocol import MessageKind, Parcel
from fedsim.protocols.push_sum import PushSum
from fedsim.protocols.simulate import Faults, Said, place, play_round
from tests.fedsim.protocols.playing import (
    complete,
    counted,
    models,
    nothing_to_learn,
    own_starts,
    play,
    quadratics,
    random_graph,
    ring,
    same_starts,
)


def test_mass_and_numerators_are_conserved_on_a_directed_graph() -> None:
    starts = own_starts(9)

    played = play(PushSum(), random_graph(9, 4, directed=True), starts, rounds=200)

    for one in played:
        mass = torch.cat([state["mass"] for state in one.states]).sum()
        numerator = torch.stack([state["numerator"] for state in one.states]).sum(0)
        assert abs(float(mass) - 9) <= 1e-12 * 9
        torch.testing.assert_close(numerator, torch.stack(starts).sum(0), rtol=0, atol=1e-12)


def test_no_mass_is_lost_when_peers_fail() -> None:
    network, protocol = random_graph(6, 4, directed=True), PushSum()
    faults = Faults(failed={(2, 1): 0, (3, 1): 0, (3, 4): 1, (5, 2): 1, (5, 0): 1})
    states, late = [protocol.begin(start) for start in own_starts(6)], list[Said]()

    for number in range(1, 9):
        played = play_round(
            protocol,
            network,
            states,
            nothing_to_learn,
            number,
            learning_rate=0.1,
            faults=faults,
            late=late,
        )
        states = list(played.states)
        parts = [*states, *(one.parcel.tensors for one in late)]
        assert bool(late) == (number in {2, 3, 5})
        for what, whole in {"mass": torch.tensor([6.0]), "numerator": sum(own_starts(6))}.items():
            total = torch.stack([part[what] for part in parts]).sum(0)
            torch.testing.assert_close(total, torch.as_tensor(whole).double(), rtol=0, atol=1e-12)


def test_a_peer_that_stays_dead_takes_no_more_with_it_than_the_shares_of_one_round() -> None:
    protocol, starts = PushSum(), [start.float() for start in own_starts(5)]
    faults = Faults(failed={(number, 2): 0 for number in range(3, 1001)})
    states, late = [protocol.begin(start) for start in starts], list[Said]()
    kept = []

    for number in range(1, 1001):
        played = play_round(
            protocol,
            ring(5),
            states,
            nothing_to_learn,
            number,
            learning_rate=0.1,
            faults=faults,
            late=late,
        )
        states = list(played.states)
        kept.append(sum(float(state["mass"]) for state in states if state is not states[2]))
        assert [(one.round, one.sender) for one in late] == ([(3, 1), (3, 3)] if number > 2 else [])

    assert max(kept[2:]) - min(kept[2:]) <= 1e-12  # what is left in circulation stays there
    assert kept[2] > 2
    whole = torch.stack([states[peer]["numerator"] for peer in (0, 1, 3, 4)]).sum(0) / kept[-1]
    for peer in (0, 1, 3, 4):
        torch.testing.assert_close(protocol.model(states[peer]), whole, rtol=1e-5, atol=1e-5)


def test_a_peer_with_nobody_left_to_speak_to_keeps_everything() -> None:
    protocol, network = PushSum(), ring(3)
    here = place(network, 0, 2, (0, 1, 2), learning_rate=0.1, seed=0)
    here = replace(here, local=torch.zeros_like, absent=frozenset({1, 2}))

    state, (post,) = protocol.speak(protocol.begin(torch.tensor([3.0])), here)

    assert post.to == ()
    assert float(state["mass"]) == 1
    assert float(state["numerator"]) == 3


def test_models_converge_to_the_mean_on_a_directed_graph() -> None:
    starts, network = own_starts(9), random_graph(9, 4, directed=True)

    last = play(PushSum(), network, starts, rounds=300)[-1]

    mean = torch.stack(starts).mean(0).expand(9, -1)
    torch.testing.assert_close(models(PushSum(), last), mean, rtol=0, atol=1e-12)
    assert not torch.allclose(last.states[0]["mass"], last.states[1]["mass"])  # weights are uneven


def test_on_a_complete_graph_it_is_sgd_of_the_mean() -> None:
    losses = quadratics(4)

    played = play(PushSum(), complete(4), same_starts(4), losses.gradient, rounds=3)

    model = same_starts(1)[0]
    for one in played:
        model = model - 0.1 * sum(losses.gradient(peer, 1, model) for peer in range(4)) / 4
        torch.testing.assert_close(models(PushSum(), one), model.expand(4, -1))


def test_steps_move_the_sum_of_numerators_by_the_sum_of_gradients() -> None:
    starts, local = own_starts(5, 7), counted()

    (played,) = play(PushSum(), random_graph(5, 1, directed=True), starts, local)

    after = torch.stack([state["numerator"] for state in played.states]).sum(0)
    gradients = sum(local(peer, 1, starts[peer]) for peer in range(5))
    torch.testing.assert_close(after, torch.stack(starts).sum(0) - 0.1 * gradients)


def test_shares_that_come_late_are_all_added() -> None:
    here = place(complete(3), 1, 1, range(3), learning_rate=0.1, seed=0)
    share = Parcel(
        kind=MessageKind.SHARE,
        tensors={
            "numerator": torch.tensor([2.0]),
            "mass": torch.tensor([0.25], dtype=torch.float64),
        },
    )

    after = PushSum().listen(PushSum().begin(torch.tensor([1.0])), {0: [share, share]}, here)

    assert after["numerator"].tolist() == [5.0]
    assert after["mass"].tolist() == [1.5]


def test_the_quotient_heard_is_the_senders_model_after_its_step() -> None:
    losses, network = quadratics(6), random_graph(6, 2, directed=True)

    first, then = play(PushSum(), network, own_starts(6), losses.gradient, rounds=2)

    for one in then.said:
        before = first.states[one.sender]
        z = PushSum().model(before)
        step = 0.1 * losses.gradient(one.sender, 2, z) / before["mass"]
        said = one.parcel.tensors
        torch.testing.assert_close(said["numerator"] / said["mass"], z - step)


def test_vectors_keep_their_precision_and_mass_has_its_own() -> None:
    starts = [start.float() for start in own_starts(4)]

    (played,) = play(PushSum(), complete(4), starts)

    assert {state["mass"].dtype for state in played.states} == {torch.float64}
    assert models(PushSum(), played).dtype == torch.float32
