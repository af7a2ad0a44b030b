"""The sealed truth: written by the client, opened by scoring, and by the report for its originals.

No attack, and no process that runs attacks, imports this module; an import contract says so, and
the attack workers refuse to open files below `truth/`.
"""

import torch
from torch import Tensor

from fedsim.files import read_tensors, replace_tensors
from fedsim.records import EVERYBODY, RunDirectory


def seal(run: RunDirectory, server_round: int, client: str, inputs: Tensor, labels: Tensor) -> None:
    """Write one client's private batch: inputs (B, C, H, W) in [0, 1], labels (B,) int64."""
    path = run.root / "truth" / f"round-{server_round:05d}-{client}.safetensors"
    replace_tensors(path, {"inputs": inputs, "labels": labels})


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
    path = run.root / "truth" / f"round-{server_round:05d}-{client}.safetensors"
    if not path.is_file():
        return None
    tensors, _ = read_tensors(path)
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
