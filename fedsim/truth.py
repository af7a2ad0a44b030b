"""The sealed truth: written by the client, opened by scoring, and by the report for its originals.

No attack, and no process that runs attacks, imports this module; an import contract says so, and
the attack workers refuse to open files below `truth/`.
"""

import torch
from torch import Tensor

from attacks.observation import Tensors
from fedsim.files import file_in, part_of, read_tensors, reading, replace_tensors
from fedsim.records import EVERYBODY, RunDirectory


def seal(
    run: RunDirectory,
    server_round: int,
    client: str,
    inputs: Tensor,
    labels: Tensor,
    *,
    update: Tensors | None = None,
    weights: Tensors | None = None,
) -> None:
    """Write one client's private batch: inputs (B, C, H, W) in [0, 1], labels (B,) int64.

    Of a peer, write the update as well, and the weights that it was computed at, both by parameter
    name: its neighbours must isolate them, and how well they did is scored.
    """
    path = run.root / "truth" / f"round-{server_round:05d}-{client}.safetensors"
    tensors = {"inputs": inputs, "labels": labels}
    tensors |= {f"update/{name}": tensor for name, tensor in (update or {}).items()}
    tensors |= {f"weights/{name}": tensor for name, tensor in (weights or {}).items()}
    replace_tensors(path, tensors)


def unseal_update(
    run: RunDirectory, server_round: int, client: str
) -> tuple[dict[str, Tensor], dict[str, Tensor]] | None:
    """Return a peer's update and the weights it was computed at; None if none was sealed."""
    path = file_in(run.root / "truth", f"round-{server_round:05d}-{client}.safetensors")
    if not path.is_file():
        return None
    tensors, _ = read_tensors(path)
    update, weights = part_of(tensors, "update"), part_of(tensors, "weights")
    return (update, weights) if update else None


def unseal(run: RunDirectory, server_round: int, client: str) -> tuple[Tensor, Tensor] | None:
    """Return one private batch, inputs (B, C, H, W) and labels (B,); None if none was sealed.

    The batch of `EVERYBODY` is that of all clients behind the mean heard in this round.
    """
    if client == EVERYBODY:
        batches = [unseal(run, server_round, one) for one in run.members(server_round)]
        sealed = [batch for batch in batches if batch is not None]
        if not sealed or len(sealed) < len(batches):
            return None
        inputs, labels = zip(*sealed, strict=True)
        return torch.cat(inputs), torch.cat(labels)
    path = file_in(run.root / "truth", f"round-{server_round:05d}-{client}.safetensors")
    if not path.is_file():
        return None
    tensors, _ = read_tensors(path)
    with reading(path):
        return tensors["inputs"], tensors["labels"]


def unsealed_before(run: RunDirectory, server_round: int, most: int) -> Tensor | None:
    """Return at most so many private images of earlier rounds, (N, C, H, W), newest round first.

    Rounds before this one are whole, so the answer is the same whenever it is asked. None if there
    are no images, or they have not all one shape.
    """
    paths = [
        path
        for path in (run.root / "truth").glob("round-*.safetensors")
        if int(path.name.split("-")[1]) < server_round
    ]
    found: list[Tensor] = []
    for path in sorted(paths, key=lambda path: (-int(path.name.split("-")[1]), path.name)):
        if sum(map(len, found)) >= most:
            break
        found.append(read_tensors(path)[0]["inputs"])
    if len({images.shape[1:] for images in found}) != 1:
        return None
    return torch.cat(found)[:most]
