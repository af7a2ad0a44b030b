import threading

import torch

from attacks.global_generators import global_generators


def test_what_is_drawn_is_of_the_seed_and_leaves_no_trace() -> None:
    before = torch.get_rng_state()
    with global_generators(7):
        one = torch.rand(3)
    with global_generators(7, torch.device("cpu")):
        again = torch.rand(3)

    torch.testing.assert_close(one, again, rtol=0, atol=0)
    torch.testing.assert_close(one, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(torch.get_rng_state(), before)


def test_the_draws_of_one_thread_are_not_those_of_another() -> None:
    begun = threading.Event()

    def disturb() -> None:
        begun.set()
        with global_generators(2):
            torch.rand(5)

    with global_generators(1):
        first = torch.rand(2)
        other = threading.Thread(target=disturb)
        other.start()
        begun.wait()
        other.join(timeout=0.2)  # without a lock it draws now
        with global_generators(3):  # the same thread may borrow once more
            torch.rand(4)
        then = torch.rand(2)
    other.join()

    expected = torch.rand(4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.cat([first, then]), expected, rtol=0, atol=0)
