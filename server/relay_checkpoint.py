"""Where a resumed run without a server goes on: its round, and what the relay still has to deliver.

Peers remember their models themselves; the mean of them is kept for whoever asks for the weights.
"""

import json
from collections.abc import Mapping, Sequence

from flwr.app import ConfigRecord
from torch import Tensor

from attacks.observation import Tensors
from fedsim.files import Record, part_of, read_tensors, reading, replace_tensors
from fedsim.peer_wire import Addressed
from fedsim.records import RunDirectory
from fedsim.wire import to_record, to_tensors

Late = dict[int, list[Addressed]]
Restored = tuple[int, Late, set[int], set[int]]


def save(
    run: RunDirectory,
    number: int,
    average: Tensors | None,
    late: Mapping[int, Sequence[Addressed]],
    behind: set[int],
    absent: set[int],
) -> None:
    """Write the state after a round; the file appears whole.

    Args:
        run: Where.
        number: The round.
        average: The mean of all models; None to keep that of an earlier round.
        late: What waits for whom.
        behind: Members of a collective that must begin anew.
        absent: Who did not answer in the round.
    """
    if average is None:
        average = part_of(read_tensors(run.checkpoint)[0], "weights")
    tensors: dict[str, Tensor] = {f"weights/{name}": one for name, one in average.items()}
    waiting: list[Record] = []
    for receiver, said in sorted(late.items()):
        for one in said:
            place = len(waiting)
            tensors |= {f"late/{place}/{name}": t for name, t in to_tensors(one.arrays).items()}
            waiting.append(
                {
                    "receiver": receiver,
                    "sender": one.sender,
                    "round": one.round,
                    "hop": one.hop,
                    "about": dict(one.about),
                }
            )
    metadata = {
        "round": str(number),
        "behind": json.dumps(sorted(behind)),
        "absent": json.dumps(sorted(absent)),
        "late": json.dumps(waiting),
    }
    replace_tensors(run.checkpoint, tensors, metadata)


def restore(run: RunDirectory) -> Restored | None:
    """Return the last whole round, what waits for whom, who is behind and who did not answer.

    None at the start.

    Raises:
        Damaged: The file is not as `save` wrote it.
    """
    if not run.checkpoint.is_file():
        return None
    tensors, metadata = read_tensors(run.checkpoint)
    with reading(run.checkpoint):
        return _restored(tensors, metadata)


def _restored(tensors: Tensors, metadata: Mapping[str, str]) -> Restored:
    late: Late = {}
    for place, waits in enumerate(json.loads(metadata["late"])):
        late.setdefault(waits["receiver"], []).append(
            Addressed(
                sender=waits["sender"],
                to=(waits["receiver"],),
                round=waits["round"],
                hop=waits["hop"],
                arrays=to_record(part_of(tensors, f"late/{place}")),
                about=ConfigRecord(waits["about"]),
            )
        )
    behind, absent = (set(json.loads(metadata[who])) for who in ("behind", "absent"))
    return int(metadata["round"]), late, behind, absent
