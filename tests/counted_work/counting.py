"""What a piece of work does, in numbers that do not depend on the machine's mood."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Message
from torch.utils._python_dispatch import TorchDispatchMode

_WAITS = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero")
"""Operations whose result the host needs, so that it waits for the device: `.item()`, `float()`,
`bool()`, `.tolist()` of one number, comparing whole tensors, and indices of unknown number."""


class Counted(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations of torch inside a `with`; derivatives are operations, too.

    Attributes:
        operations: By name, without overloads.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()

    def __torch_dispatch__(
        self,
        func: Any,  # what torch hands over has no public type
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count one operation, and do it."""
        self.operations[func._schema.name.partition("::")[2]] += 1
        return func(*args, **(kwargs or {}))

    @property
    def total(self) -> int:
        """All operations; each but views makes a tensor, so this bounds allocations as well."""
        return self.operations.total()

    @property
    def waits(self) -> int:
        """How often the host waited for a device, or would have."""
        return sum(self.operations[name] for name in _WAITS)


def payload_bytes(message: Message) -> int:
    """Return the bytes of all arrays in a message, as they are sent."""
    if message.has_error():
        return 0
    return sum(
        len(array.data)
        for record in message.content.array_records.values()
        for array in record.values()
    )
