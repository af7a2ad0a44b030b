"""The sealed truth: written by the client, opened by scoring, and by the report for its originals.

No attack, and no process that runs attacks, imports this module; an import contract says so, and
the attack workers refuse to open files below `truth/`.
"""

from torch import Tensor

from fedsim.records import RunDirectory, read_tensors, replace_tensors


def seal(run: RunDirectory, server_round: int, client: str, inputs: Tensor, labels: Tensor) -> None:
    """Write one client's private batch: inputs (B, C, H, W) in [0, 1], labels (B,) int64."""
    path = run.root / "truth" / f"round-{server_round:05d}-{client}.safetensors"
    replace_tensors(path, {"inputs": inputs, "labels": labels})


def unseal(run: RunDirectory, server_round: int, client: str) -> tuple[Tensor, Tensor] | None:
    """Return one private batch, inputs (B, C, H, W) and labels (B,); None if none was sealed."""
    path = run.root / "truth" / f"round-{server_round:05d}-{client}.safetensors"
    if not path.is_file():
        return None
    tensors, _ = read_tensors(path)
    return tensors["inputs"], tensors["labels"]
