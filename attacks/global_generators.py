"""PyTorch's generators of the whole process, borrowed by one thread at a time."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_BORROWED = threading.RLock()  # a run trains in one thread and isolates what was heard in another


@contextmanager
def global_generators(
    seed: int | None = None, device: torch.device | None = None
) -> Iterator[None]:
    """Borrow the generators that layers draw from by themselves; put back as they were after.

    Initial weights and dropout take no generator of ours. Whoever seeds the global ones holds
    them until done, so that what another thread draws meanwhile changes nothing.

    Args:
        seed: What to seed them with; None leaves their state, and what is drawn is not repeatable.
        device: Where the modules are; a GPU's generator is borrowed beside the CPU's.
    """
    gpus = [device] if device is not None and device.type == "cuda" else []
    with _BORROWED, torch.random.fork_rng(devices=gpus):
        if seed is not None:
            # not torch.manual_seed: without a GPU it queues a call, with a stack trace, each time
            torch.default_generator.manual_seed(seed)
            for gpu in gpus:
                with torch.cuda.device(gpu):
                    torch.cuda.manual_seed(seed)
        yield
