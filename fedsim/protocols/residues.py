"""Vectors of whole numbers modulo a prime, on which protocols run without rounding.

They stand in for tensors of coefficients: a protocol adds, cuts and joins them, and scales them by
the weights of the topology, which are fractions that it knows as floating-point numbers.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from attacks.isolation.identifiability import PRIME, matmul

LARGEST_DENOMINATOR = 10**6
"""A weight is taken for the fraction that it is next to, if its denominator is no larger."""

_AS_THEY_ARE = frozenset(
    {"__getitem__", "__get__", "tensor_split", "split", "chunk", "cat", "stack", "clone", "pad"}
    | {"zeros_like", "dim", "size", "__len__", "__repr__", "contiguous", "detach", "numpy"}
)
"""Operations that move entries about and do not compute."""


class Residues(Tensor):
    """Residues modulo PRIME, int64; never changed in place.

    What is told to many is scaled by each of them, often by the same weight: it is done once.

    Raises:
        NotImplementedError: An operation is none of a linear protocol.
        ValueError: A weight is no small fraction.
    """

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute modulo PRIME."""
        name = func.__name__
        if name in _AS_THEY_ARE:
            return super().__torch_function__(  # type: ignore[no-untyped-call]
                func, types, args, kwargs or {}
            )
        compute = _ARITHMETIC.get(name.strip("_"))
        if compute is None or kwargs:
            raise NotImplementedError(f"{name} is no operation of a linear protocol")
        numbers = [one for one in args if isinstance(one, float)]
        scaled = args[args[0] is numbers[0]].__dict__ if numbers else {}
        if (done := scaled.get((name, *numbers))) is not None:
            return done
        made = compute(*(_plain(one) for one in args)).remainder_(PRIME).as_subclass(cls)
        if numbers:
            scaled[name, *numbers] = made
        return made


def residue_units(height: int, width: int, column: int) -> Tensor:
    """Return unit rows (C, K) of residues, for `fedsim.protocols.coefficients`."""
    rows = torch.zeros(height, width, dtype=torch.int64)
    rows[:, column] = 1
    return rows.as_subclass(Residues)


@functools.lru_cache(maxsize=4096)
def residue_of(number: float) -> int:
    """Return the residue of a fraction, given as a floating-point number.

    Raises:
        ValueError: It is none with a denominator up to LARGEST_DENOMINATOR.
    """
    fraction = Fraction(number).limit_denominator(LARGEST_DENOMINATOR)
    if abs(float(fraction) - number) > 1e-15 * max(1.0, abs(number)):
        raise ValueError(
            f"weights must be fractions with a denominator up to {LARGEST_DENOMINATOR}, got "
            f"{number}; take mixing weights and a learning rate that are"
        )
    return _of_fraction(fraction)


def _of_fraction(fraction: Fraction) -> int:
    return fraction.numerator * pow(fraction.denominator, -1, PRIME) % PRIME


def _divisor(number: float) -> int:
    """Return the residue of one over a number.

    Push-sum divides by masses, whose fractions grow long. They are taken as the binary fractions
    that they are stored as: the quotient is where gradients are computed, and no message holds it.
    """
    try:
        divisor = residue_of(number)
    except ValueError:
        divisor = _of_fraction(Fraction(number))
    return pow(divisor, -1, PRIME)


def _plain(value: object) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, Residues) else value


def _scaled(one: Any, other: Any) -> Tensor:
    vector, number = (one, other) if isinstance(one, Tensor) else (other, one)
    factor = number if isinstance(number, Tensor) else residue_of(float(number))
    return _integers(vector) * factor


def _divided(vector: Any, number: Any) -> Tensor:
    return _integers(vector) * _divisor(float(number))


def _summed(one: Any, other: Any) -> Tensor:
    return _integers(one) + _integers(other)


def _less(one: Any, other: Any) -> Tensor:
    return _integers(one) - _integers(other)


def _product(rows: Any, matrix: Any) -> Tensor:
    """Return rows (M, R) times a matrix (R, U)."""
    return torch.from_numpy(matmul(_integers(rows).numpy(), matrix.numpy()))


def _negative(vector: Any) -> Tensor:
    return -_integers(vector)


def _integers(value: object) -> Tensor:
    if isinstance(value, Tensor) and not value.is_floating_point():
        return value
    if isinstance(value, int) and value == 0:  # with which `sum` begins
        return torch.tensor(0)
    raise NotImplementedError("a linear protocol does not add numbers of its own to vectors")


_ARITHMETIC: Mapping[str, Callable[..., Tensor]] = {
    "mul": _scaled,
    "rmul": _scaled,
    "div": _divided,
    "truediv": _divided,
    "add": _summed,
    "radd": _summed,
    "sub": _less,
    "neg": _negative,
    "matmul": _product,
}
