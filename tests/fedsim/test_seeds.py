"""Named streams of random numbers."""

import torch

from fedsim.seeds import derive, numpy_stream, stream


def test_one_name_gives_the_same_numbers_whatever_was_drawn_elsewhere() -> None:
    first = torch.rand(5, generator=stream(0, "round", 3, "client", 7))

    torch.rand(1000, generator=stream(0, "round", 3, "client", 8))
    torch.rand(1000)
    second = torch.rand(5, generator=stream(0, "round", 3, "client", 7))

    assert torch.equal(first, second)
    assert numpy_stream(0, "a").integers(1 << 60) == numpy_stream(0, "a").integers(1 << 60)


def test_other_seeds_other_names_and_other_types_give_other_numbers() -> None:
    seeds = {
        derive(0, "a", 1),
        derive(1, "a", 1),
        derive(-1, "a", 1),
        derive(0, "a", "1"),
        derive(0, "a"),
        derive(0, "a1"),
        derive(0, 1, "a"),
        derive(0, "a", 1, "b"),
    }

    assert len(seeds) == 8
    assert all(0 <= seed < 1 << 63 for seed in seeds)


def test_the_derivation_is_fixed_for_ever() -> None:
    # published numbers hang on it: the first 8 bytes of the SHA-256 of "int:0\x1fstr:model", halved
    assert derive(0, "model") == 107032663223754809
