"""Run directories of any size, written without running anything, a part at a time."""

import json
from datetime import UTC, datetime
from pathlib import Path

import torch

from attacks.observation import Reconstruction, Snapshot
from fedsim.config import parse_experiment
from fedsim.files import Record, replace_bytes, replace_json
from fedsim.records import RunDirectory
from fedsim.threat import threat_of, threat_record
from fedsim.truth import seal
from tests.fedsim.told import table_run, text_run

EXPERIMENT = """
name = "large"
description = "Made up, to be looked at"
rounds = {rounds}
[partition]
clients = {clients}
[[attacks]]
name = "dlg"
[[attacks]]
name = "label"
"""


class Made:
    """A run that grows when told to.

    Args:
        root: Of the run; its folder is made.
        rounds: Of the experiment.
        clients: Of the experiment; all are heard in every round.
    """

    def __init__(self, root: Path, *, rounds: int, clients: int) -> None:
        self.run = RunDirectory(root)
        self.clients = clients
        self.text = EXPERIMENT.format(rounds=rounds, clients=clients)
        (root / "observations").mkdir(parents=True)
        (root / "reconstructions").mkdir()

    def begin(self) -> None:
        """Write what stands at the beginning of a run."""
        experiment = parse_experiment(self.text)
        replace_json(self.run.root / "threat.json", threat_record(threat_of(experiment)))
        replace_bytes(self.run.config, experiment.to_toml().encode())

    def play(self, number: int, *, heard: bool = True) -> None:
        """Write a round, and what was heard in it."""
        self.run.append_round(
            {
                "round": number,
                "accuracy": 1 - 0.9 * 0.99**number,
                "loss": 2.3 * 0.99**number,
                "clients": list(range(self.clients)),
                "seconds": 0.5,
            }
        )
        for client in range(self.clients if heard else 0):
            path = self.run.root / "observations" / f"{self.observation(number, client)}.json"
            path.write_text('{"num_examples": 1}\n')

    def observation(self, number: int, client: int) -> str:
        """Return the id of what was heard of a client in a round."""
        return f"round-{number:05d}-client-{client}-to-server"

    def score(self, number: int, client: int, psnr_db: float, attack: str = "dlg") -> Record:
        """Return the score of one attack on one client, as long as a real one."""
        image = {
            "truth": 0,
            "guess": 0,
            "mse": 10 ** (-psnr_db / 10),
            "psnr_db": psnr_db,
            "ssim": 0.987654321,
            "label": client % 10,
            "guessed_label": client % 10,
            "recovered": psnr_db >= 30,
            "registered_psnr_db": psnr_db,
        }
        guess = {key: [0.0123456789012345] for key in ("mse", "psnr_db", "ssim")}
        return {
            "observation": self.observation(number, client),
            "round": number,
            "victim": f"client-{client}",
            "attack": attack,
            "threat": "curious-server",
            "defense": "none",
            "status": "done",
            "reason": None,
            "batch_size": 1,
            "images": [image],
            "label_accuracy": 1.0,
            "success_rate": float(psnr_db >= 30),
            "success_threshold_db": 30.0,
            "baselines": {
                "random_guess": guess,
                "data_mean": guess | {"psnr_db": [12.0]},
                "nearest_public": guess,
            },
            "seconds": 0.5,
            "lpips_reason": "x" * 200,
        }

    def attack(self, number: int, client: int, psnr_db: float = 42.0) -> None:
        """Write a private image, a guess at it with its looks, and its score."""
        rng = torch.Generator().manual_seed(1000 * number + client)
        image = torch.rand(1, 1, 8, 8, generator=rng)
        name = self.observation(number, client)
        seal(self.run, number, f"client-{client}", image, torch.tensor([client % 10]))
        looks = [
            Snapshot(
                step=10 * place,
                inputs=image * place / 5 + 0.5 * (1 - place / 5),
                matching_loss=float(5 - place),
            )
            for place in range(6)
        ]
        guess = Reconstruction(inputs=image, labels=None, steps=50, snapshots=tuple(looks))
        record = {"id": name, "round": number, "sender": f"client-{client}"}
        self.run.write_reconstruction(record, "dlg", guess)
        self.run.append_score(self.score(number, client, psnr_db))

    def attack_all(self, numbers: range) -> None:
        """Write scores alone, of everybody in these rounds, at once."""
        lines = [
            json.dumps(self.score(number, client, 20 + (7 * client + number) % 60))
            for number in numbers
            for client in range(self.clients)
        ]
        with (self.run.root / "scores.jsonl").open("a") as log:
            log.write("".join(f"{line}\n" for line in lines))


HOSTILE = (
    "<img src=x onerror='window.hurt=1'>",
    "\u202eabc\u202c",
    "a\x00b\nc\x1b[31m",
    "\u200f\u061c",
    "",
    "y" * 5000,
    "##</mark><b>",
    "{{7*7}}",
)
"""Tokens, classes and categories of somebody who means no good."""


def hostile_text(parent: Path) -> RunDirectory:
    """Make a run of texts whose words are not to be shown as they are."""
    run = text_run(parent, name="hostile")
    told = json.loads(run.data.read_text())
    told["words"][5 : 5 + len(HOSTILE)] = HOSTILE
    replace_json(run.data, told)
    return run


def hostile_table(parent: Path) -> RunDirectory:
    """Make a run of a table whose features are not to be shown as they are."""
    run = table_run(parent, name="hostile")
    told = json.loads(run.data.read_text())
    told["class_names"] = [HOSTILE[0], HOSTILE[1]]
    for place, column in enumerate(told["columns"]):
        column["name"] = HOSTILE[place]
        column["categories"] = [
            HOSTILE[(place + one) % 8] for one in range(len(column["categories"]))
        ]
    replace_json(run.data, told)
    return run


def job(attack: str, observation: str, step: int, *, examples: int = 1) -> Record:
    """Return what a worker says of the job that it has."""
    return {
        "attack": attack,
        "observations": [observation],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "time_budget_s": 60.0,
        "guesses": {observation: {"step": step, "images": examples}},
    }
