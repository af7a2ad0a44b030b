"""How often each client-side check is wrong, and how often it notices each active attack.

Ordinary training: models and data sets below, eight clients with unequal shares (Dirichlet 0.5),
FedSGD and FedAvg (five steps; whole epochs, momentum, and few clients drawn per round), several
seeds; in every round two clients, or all that are drawn, run every check on what they receive.
Attacks: at the start, in the middle and at the end of the same training, the weights in force are
tampered with by each active attack that fits the model, and the same clients check what they would
be sent. The client knows the weights of the round before, not the model agreed. "Any, first round"
leaves out the check that needs the round before. The attacker has a public sample.

    python -m benchmarks.client_checks --output benchmarks/results/client_checks.json

A number is the share of messages in which the check raised an alarm at its own threshold. Control:
random weights in place of those in force, which no attack needs and only `weight-jump` can notice.
"""

import argparse
import copy
import json
import platform
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from attacks.eluding import Eluding
from attacks.fishing import Fishing
from attacks.observation import ActiveAttack, AttackFailed, Knowledge, LocalRecipe
from attacks.robbing_the_fed import RobbingTheFed
from attacks.soliton import Soliton
from attacks.trap_weights import TrapWeights
from clients.checks.activation_rate import ActivationRate
from clients.checks.alarm import Check, reach_of
from clients.checks.architecture import Architecture
from clients.checks.collinear_rows import CollinearRows
from clients.checks.dead_layer import DeadLayer
from clients.checks.gradient_isolation import GradientIsolation
from clients.checks.lopsided_classifier import LopsidedClassifier
from clients.checks.weight_jump import WeightJump
from fedsim.data.kinds import TaskData
from fedsim.data.load import load_data
from fedsim.data.partition import partition
from fedsim.models.build import build_model
from fedsim.seeds import stream

CLIENTS = 8
CHECKED = 2
BATCH = 16
LEARNING_RATE = 0.1
LOCAL_STEPS = 5
PUBLIC = 100
"""Images that the attacker has to plan with, from the test split."""

SETTINGS: tuple[tuple[str, str, dict[str, object]], ...] = (
    ("digits", "mlp", {}),
    ("digits", "dlg-lenet", {}),
    ("photos", "mlp", {}),
    ("photos", "dlg-lenet", {}),
    ("photos", "convnet", {"width": 4}),
)
"""Data set, model, and its options."""

ATTACKS: dict[str, ActiveAttack] = {
    "robbing-the-fed": RobbingTheFed(),
    "trap-weights": TrapWeights(),
    "soliton": Soliton(),
    "fishing": Fishing(then="linear"),
    "eluding": Eluding(then="linear"),
}

EVERYTHING = float("inf")


def loud_checks() -> dict[str, tuple[Check, float, bool]]:
    """Checks that always tell what they measured; their real threshold; whether low is bad."""
    return {
        "architecture": (Architecture(), 1.0, False),
        "collinear-rows": (CollinearRows(threshold=0.0), CollinearRows().threshold, False),
        "activation-rate": (ActivationRate(threshold=1.0), ActivationRate().threshold, True),
        "dead-layer": (DeadLayer(threshold=EVERYTHING), DeadLayer().threshold, True),
        "weight-jump": (WeightJump(threshold=0.0, factor=0.0), WeightJump().threshold, False),
        "lopsided-classifier": (
            LopsidedClassifier(threshold=0.0),
            LopsidedClassifier().threshold,
            False,
        ),
        "gradient-isolation": (
            GradientIsolation(threshold=0.0),
            GradientIsolation().threshold,
            False,
        ),
    }


@dataclass
class Tally:
    """What every check measured in one kind of message.

    Attributes:
        values: By check, the most alarming value of each message in which it measured anything.
        messages: How many messages there were.
        alarmed: In how many at least one check raised an alarm.
        alarmed_first: In how many one did that needs no earlier round.
        alarms: By check, in how many it did.
    """

    values: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    messages: int = 0
    alarmed: int = 0
    alarmed_first: int = 0
    alarms: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(
        self,
        model: nn.Module,
        inputs: Tensor,
        labels: Tensor,
        before: dict[str, Tensor] | None,
        reach: float,
    ) -> None:
        """Run every check on one message."""
        self.messages += 1
        raised = set()
        for name, (check, threshold, low) in loud_checks().items():
            found = [alarm.value for alarm in check.check(model, inputs, labels, before)]
            if not found:
                continue
            value = min(found) if low else max(found)
            self.values[name].append(value)
            wrong = value < threshold if low else value >= threshold
            if name == "weight-jump" and wrong:  # its threshold grows with what training can do
                jump = WeightJump().in_situation(reach)
                wrong = bool(jump.check(model, inputs, labels, before))
            self.alarms[name] += wrong
            raised |= {name} if wrong else set()
        self.alarmed += bool(raised)
        self.alarmed_first += bool(raised - {"weight-jump"})

    def summary(self) -> dict[str, object]:
        """Return shares and ranges, for the JSON file."""
        return {
            "messages": self.messages,
            "any": self.alarmed / max(1, self.messages),
            "any_in_first_round": self.alarmed_first / max(1, self.messages),
            "checks": {
                name: {
                    "share": self.alarms[name] / max(1, self.messages),
                    "lowest": _plain(min(self.values[name], default=None)),
                    "highest": _plain(max(self.values[name], default=None)),
                }
                for name in loud_checks()
            },
        }


def _plain(value: float | None) -> float | str | None:
    """Return a number that JSON has a word for."""
    return "infinite" if value == EVERYTHING else value


@dataclass(frozen=True, kw_only=True)
class Moment:
    """One round of ordinary training, before clients compute."""

    number: int
    model: nn.Module
    shares: list[tuple[Tensor, Tensor]]
    clients: dict[int, tuple[dict[str, Tensor] | None, float]]
    """The checked clients that are drawn: what each received last, and its reach since."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of training.

    Attributes:
        title: What its ordinary messages are called in the table.
        steps: Of a round; None makes `epochs` of the client's own data.
        epochs: Passes.
        momentum: Of local SGD.
        drawn: Clients per round.
        rate: Step size.
        attacked: Whether attacks are measured in it as well.
    """

    title: str
    steps: int | None = None
    epochs: int = 1
    momentum: float = 0.0
    drawn: int = CLIENTS
    rate: float = LEARNING_RATE
    attacked: bool = False

    def num_steps(self, num_examples: int) -> int:
        """Return the steps of a client with so many examples."""
        return self.steps or self.epochs * -(-num_examples // BATCH)


WAYS = (
    Way(title="ordinary", steps=1, attacked=True),
    Way(title="ordinary", steps=LOCAL_STEPS, attacked=True),
    Way(title="ordinary, 2 epochs", epochs=2),
    Way(title="ordinary, momentum 0.9", epochs=1, momentum=0.9, rate=0.02),
    Way(title="ordinary, momentum 0.9, 2 epochs, 2 of 8 drawn", epochs=2, momentum=0.9, drawn=2),
)


def training(
    data: str, model: str, options: dict[str, object], *, way: Way, seed: int, rounds: int
) -> Iterator[Moment]:
    """Train, and show every round as its clients receive it."""
    images = load_data(data, options={})
    rng = stream(seed, "model")
    net = build_model(model, images.input_shape, images.num_classes, rng=rng, options=options)
    net.train()
    parts = partition(
        images.train_labels,
        name="dirichlet",
        num_clients=CLIENTS,
        seed=seed,
        options={"alpha": 0.5, "min_partition_size": BATCH},
    )
    shares = [(images.train_inputs[part], images.train_labels[part]) for part in parts]
    received: dict[int, tuple[int, dict[str, Tensor]]] = {}
    draw = stream(seed, "batches")
    for number in range(rounds):
        order = torch.randperm(CLIENTS, generator=draw).tolist() if way.drawn < CLIENTS else None
        drawn = sorted(order[: way.drawn]) if order else list(range(CLIENTS))
        clients: dict[int, tuple[dict[str, Tensor] | None, float]] = {}
        for one in drawn:
            last, before = received.get(one, (number, None))
            steps = way.num_steps(len(shares[one][0]))
            if one < CHECKED or way.drawn < CLIENTS:
                clients[one] = before, reach_of(way.rate, way.momentum, steps, number - last)
            received[one] = number, {name: p.detach().clone() for name, p in net.named_parameters()}
        yield Moment(number=number, model=net, shares=shares, clients=clients)
        updates = [_trained(net, *shares[one], way, draw) for one in drawn]
        mean = {
            name: torch.stack([update[name].double() for update in updates]).mean(0)
            for name in updates[0]
        }
        net.load_state_dict(mean)


def _trained(
    net: nn.Module, inputs: Tensor, labels: Tensor, way: Way, draw: torch.Generator
) -> dict[str, Tensor]:
    """Return a client's state after its steps."""
    local = copy.deepcopy(net)
    optimizer = torch.optim.SGD(local.parameters(), lr=way.rate, momentum=way.momentum)
    order: list[int] = []
    for _ in range(way.num_steps(len(inputs))):
        if way.steps:
            chosen = torch.randperm(len(inputs), generator=draw)[:BATCH].tolist()
        else:
            order = order or torch.randperm(len(inputs), generator=draw).tolist()
            chosen, order = order[:BATCH], order[BATCH:]
        optimizer.zero_grad()
        functional.cross_entropy(local(inputs[chosen]), labels[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return dict(local.state_dict())


def attacked(
    attack: ActiveAttack, moment: Moment, num_classes: int, public: Tensor, seed: int
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the model as a client other than the target would receive it, and that in force.

    Of `eluding`, everybody but the target is sent other weights; of the others, the target is.
    """
    rng, shape = stream(seed, "tamper"), tuple(public.shape[1:])
    model = attack.implant(copy.deepcopy(moment.model), shape, num_classes)
    known = Knowledge(
        model=model,
        input_shape=shape,
        batch_size=BATCH,
        num_classes=num_classes,
        recipe=LocalRecipe(batch_size=BATCH, train_mode=True),
        public_sample=public,
    )
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    sent = attack.tamper(
        weights,
        known,
        receiver="client-0",
        target="client-1" if isinstance(attack, Eluding) else "client-0",
        earlier=[],
        rng=rng,
    )
    model.load_state_dict({**model.state_dict(), **sent})
    return model, weights


def run(seeds: int, rounds: int) -> dict[str, dict[str, object]]:
    """Return the tallies of ordinary training, per setting and together, and of each attack."""
    tallies: dict[str, Tally] = defaultdict(Tally)
    for data, name, options in SETTINGS:
        images = load_data(data, options={})
        for way in WAYS:
            for seed in range(seeds):
                for moment in training(
                    data, name, dict(options), way=way, seed=seed, rounds=rounds
                ):
                    for one, (before, reach) in moment.clients.items():
                        tallies[way.title].add(moment.model, *moment.shares[one], before, reach)
                    if way.attacked and moment.number in (1, rounds // 2, rounds - 1):
                        _attack(tallies, moment, (name, options), images, seed)
    return {kind: tally.summary() for kind, tally in tallies.items()}


def _attack(
    tallies: dict[str, Tally],
    moment: Moment,
    chosen: tuple[str, dict[str, object]],
    images: TaskData,
    seed: int,
) -> None:
    """Add what clients would be sent by each attack in one round, and the control."""
    public = images.test_inputs[:PUBLIC]
    for title, attack in ATTACKS.items():
        try:
            model, weights = attacked(attack, moment, images.num_classes, public, seed)
        except AttackFailed:
            continue
        for one, (before, reach) in moment.clients.items():
            had = None if before is None else {**weights, **before}  # the block was there before
            tallies[title].add(model, *moment.shares[one], had, reach)
    redrawn = build_model(
        chosen[0],
        images.input_shape,
        images.num_classes,
        rng=stream(seed, "control"),
        options=chosen[1],
    )
    for one, (before, reach) in moment.clients.items():
        tallies["redrawn (control)"].add(redrawn, *moment.shares[one], before, reach)


def table(found: dict[str, dict[str, object]]) -> str:
    """Return a Markdown table: a row per kind of message, a column per check."""
    names = list(loud_checks())
    lines = [
        "| messages | number | any | any, first round | " + " | ".join(names) + " |",
        "|---|---|---|---|" + "---|" * len(names),
    ]
    for kind, summary in found.items():
        checks = summary["checks"]
        assert isinstance(checks, dict)
        shares = [
            summary["any"],
            summary["any_in_first_round"],
            *(checks[name]["share"] for name in names),
        ]
        cells = " | ".join(f"{100 * float(str(share)):.1f} %" for share in shares)
        lines.append(f"| {kind} | {summary['messages']} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table, write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    start = time.process_time()
    found = run(chosen.seeds, chosen.rounds)
    print(table(found))
    for kind, summary in found.items():
        checks = summary["checks"]
        assert isinstance(checks, dict)
        print(kind, {n: (c["lowest"], c["highest"]) for n, c in checks.items()})
    result = {
        "seeds": chosen.seeds,
        "rounds": chosen.rounds,
        "clients": CLIENTS,
        "checked": CHECKED,
        "batch_size": BATCH,
        "ways": [asdict(way) for way in WAYS],
        "settings": [" ".join(setting[:2]) for setting in SETTINGS],
        "cpu_s": round(time.process_time() - start, 1),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "messages": found,
    }
    if chosen.output is not None:
        chosen.output.parent.mkdir(parents=True, exist_ok=True)
        chosen.output.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
