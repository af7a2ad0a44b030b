"""Runs attacks of the library breaching in an environment of its own; see `benchmarks/peers.py`.

It takes one JSON job per line from standard input and answers one JSON line each. A target is a
safetensors file with the tensors that an attacker has: weights, buffers, gradient.

    python -m benchmarks.breaching_worker < jobs
"""

import json
import logging
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import breaching
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fedsim.models.build import build_model


def architecture(job: dict[str, Any]) -> nn.Module:
    """Return the model of the target, without the normalisation that breaching does itself."""
    shape, classes = tuple(job["input_shape"]), job["num_classes"]
    rng = torch.Generator().manual_seed(0)
    return build_model(job["model"], shape, classes, rng=rng, options=job["model_options"])


def payload(
    job: dict[str, Any], tensors: dict[str, Tensor], model: nn.Module
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what breaching calls the server's payload and the shared data."""
    metadata = OmegaConf.create(
        {
            "shape": job["input_shape"],
            "classes": job["num_classes"],
            "mean": job["mean"],
            "std": job["std"],
            "modality": "vision",
            "task": "classification",
        }
    )
    sent = {
        "parameters": [tensors[f"weights/{name}"] for name, _ in model.named_parameters()],
        "buffers": [tensors[f"buffers/{name}"] for name, _ in model.named_buffers()],
        "metadata": metadata,
    }
    answered = {
        "gradients": [tensors[f"gradient/{name}"] for name, _ in model.named_parameters()],
        "buffers": None,
        "metadata": {
            "num_data_points": job["batch_size"],
            "labels": None,
            "local_hyperparams": None,
        },
    }
    return sent, answered


def attack(job: dict[str, Any]) -> dict[str, Any]:
    """Run one attack on one target; write its guess to the job's output file."""
    torch.manual_seed(job["seed"])
    tensors = load_file(job["target"])
    model = architecture(job)
    config = breaching.get_attack_config(job["attack"], job["overrides"])
    setup = {"dtype": torch.float, "device": torch.device("cpu")}
    attacker = breaching.attacks.prepare_attack(model, nn.CrossEntropyLoss(), config, setup)
    sent, answered = payload(job, tensors, model)
    closures = count_closures(attacker)
    cpu = time.process_time()
    found, _ = attacker.reconstruct([sent], [answered], {}, dryrun=False)
    cpu = time.process_time() - cpu
    shape = (1, -1, 1, 1)
    mean, std = torch.tensor(job["mean"]).view(shape), torch.tensor(job["std"]).view(shape)
    inputs = (found["data"].detach() * std + mean).contiguous()
    save_file({"inputs": inputs, "labels": found["labels"].detach().contiguous()}, job["output"])
    return {"cpu_s": cpu, "closures": closures()}


def count_closures(attacker: Any) -> Callable[[], int]:
    """Count how often the attacker evaluates its objective."""
    count = 0
    forward = attacker.objective.forward

    def counted(*args: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        return forward(*args, **options)

    attacker.objective.forward = counted
    return lambda: count


def main() -> None:
    """Answer jobs until the input ends."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    answers, sys.stdout = sys.stdout, sys.stderr  # breaching prints
    for line in sys.stdin:
        answers.write(json.dumps(attack(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
