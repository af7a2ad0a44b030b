"""Say in seconds, before any run, what the updates of an experiment could tell about their data."""

import statistics
from dataclasses import dataclass

import torch
from torch import Tensor

from attacks import ATTACKS
from attacks.gauge import Influence, influence
from attacks.matching.victim import rebuild
from attacks.observation import (
    Attack,
    AttackFailed,
    Kind,
    Knowledge,
    LocalRecipe,
    Observation,
)
from fedsim.catalog import load
from fedsim.config import Experiment
from fedsim.files import Record
from fedsim.knowledge import knowledge_from
from fedsim.schemas.document import Modality
from fedsim.seeds import stream
from fedsim.setup import draw_clients, shares_of
from fedsim.stages.prepare import Plan, check, granted_sample
from fedsim.wire import shared_buffers, shared_parameters

NOISES = (1e-7, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Noise over the root mean square of an update's entries; the first stands for rounding."""


@dataclass(frozen=True, kw_only=True)
class Applies:
    """Whether an attack could be run.

    Attributes:
        name: As experiments name it.
        applies: Whether it could.
        why: What stands in its way; empty if nothing does.
    """

    name: str
    applies: bool
    why: str = ""


@dataclass(frozen=True, kw_only=True)
class Ceilings:
    """What the best attacker could expect at one level of noise, over several clients.

    Attributes:
        relative_noise: Over the root mean square of an update's entries.
        noise: Standard deviation, median over the clients.
        psnr_db: Median, lowest and highest over the clients.
        determined: Median share of the unknowns that an update tells.
    """

    relative_noise: float
    noise: float
    psnr_db: tuple[float, float, float]
    determined: float


@dataclass(frozen=True, kw_only=True)
class Gauge:
    """The risk of an experiment, before it runs.

    Attributes:
        experiment: Its name.
        threat: Its threat model.
        batch_size: Examples behind an update; if their number differs, behind the first.
        num_unknowns: Entries of their inputs.
        num_equations: Entries of an update.
        clients: How many clients were looked at, or, where only means are heard, rounds.
        clients_per_update: How many clients are behind what is heard at once; 1 unless only means
            are.
        ceilings: By level of noise; empty where updates cannot be differentiated.
        obstacle: Why there are none.
        attacks: Every attack, and whether it could be run.
        modality: What private examples are.
    """

    experiment: str
    threat: str
    batch_size: int
    num_unknowns: int
    num_equations: int
    clients: int
    clients_per_update: int
    ceilings: tuple[Ceilings, ...]
    obstacle: str
    attacks: tuple[Applies, ...]
    modality: Modality = "image"

    def record(self) -> Record:
        """Return the same as JSON holds it."""
        return {
            "experiment": self.experiment,
            "threat": self.threat,
            "modality": self.modality,
            "batch_size": self.batch_size,
            "num_unknowns": self.num_unknowns,
            "num_equations": self.num_equations,
            "clients": self.clients,
            "clients_per_update": self.clients_per_update,
            "obstacle": self.obstacle or None,
            "ceilings": [
                {
                    "relative_noise": one.relative_noise,
                    "noise": one.noise,
                    "psnr_db": dict(zip(("median", "lowest", "highest"), one.psnr_db, strict=True)),
                    "determined": one.determined,
                }
                for one in self.ceilings
            ],
            "attacks": [
                {"name": one.name, "applies": one.applies, "why": one.why or None}
                for one in self.attacks
            ],
        }


def gauge(experiment: Experiment, *, clients: int = 3) -> Gauge:
    """Gauge the first updates of an experiment, with its untrained model and its own data.

    Where the adversary hears only means, what is gauged is the mean over all clients of a round.
    One that sends weights of its own choice may make it tell more of some examples.

    Args:
        experiment: Its attacks play no part: all attacks are asked.
        clients: How many clients to look at, or, where only means are heard, rounds.

    Raises:
        ConfigError: The experiment cannot be run.
    """
    plan = check(experiment.model_copy(update={"attacks": []}))
    known = knowledge_from(plan.told, granted_sample(plan))
    batches = _batches(experiment, plan, clients)
    found: list[Influence] = []
    modality = plan.task.data.modality
    obstacle = "tokens are no numbers, so there is no ceiling in dB" if modality == "text" else ""
    try:
        for number, (inputs, labels) in enumerate([] if obstacle else batches):
            found.append(_influence(experiment, plan, number, inputs, labels))
    except (AttackFailed, RuntimeError) as error:  # what autograd raises
        obstacle = str(error).splitlines()[0]
    model = plan.task.build_model(stream(experiment.seed, "model"))
    size = len(batches[0][1])
    return Gauge(
        experiment=experiment.name,
        threat=plan.threat.name,
        batch_size=size,
        num_unknowns=batches[0][0].numel(),
        num_equations=sum(p.numel() for p in model.parameters() if p.requires_grad),
        clients=len(batches),
        clients_per_update=_per_update(experiment, plan),
        ceilings=_over_clients(found),
        obstacle=obstacle,
        attacks=tuple(_applies(name, plan, known) for name in ATTACKS),
        modality=modality,
    )


def _batches(experiment: Experiment, plan: Plan, clients: int) -> list[tuple[Tensor, Tensor]]:
    """Return what is behind each of the first updates that are heard."""
    data, training = plan.task.data, experiment.training
    used = [
        share[: training.num_distinct(len(share))] for share in shares_of(experiment, plan.task)
    ]
    if plan.threat.hears_sum:
        every = range(1, experiment.rounds + 1)
        heard = [number for number in every if experiment.adversary.listens_in(number)][:clients]
        draws = dict.fromkeys(tuple(draw_clients(experiment, number)) for number in heard)
        used = [torch.cat([used[client] for client in drawn]) for drawn in draws]
    return [(data.train_inputs[one], data.train_labels[one]) for one in used[:clients]]


def _per_update(experiment: Experiment, plan: Plan) -> int:
    return len(draw_clients(experiment, 1)) if plan.threat.hears_sum else 1


def _influence(
    experiment: Experiment, plan: Plan, number: int, inputs: Tensor, labels: Tensor
) -> Influence:
    """Return the influence of one client's batch on its update, in double precision."""
    model = plan.task.build_model(stream(experiment.seed, "model"))
    weights = shared_parameters(model)
    recipe = LocalRecipe(**plan.told["recipe"]) if "recipe" in plan.told else LocalRecipe()
    recipe = recipe.for_examples(len(labels))
    heard = {  # its values play no part, except that frozen parameters do not change
        name: torch.full_like(parameter.detach(), float(parameter.requires_grad))
        for name, parameter in model.named_parameters()
    }
    seen = Observation(
        round=1,
        sender=f"client-{number}",
        receiver="server",
        kind=_kind(plan, recipe),
        update=heard,
        weights=weights,
        buffers=shared_buffers(model),
    )
    known = Knowledge(
        model=model,
        loss=plan.task.loss,
        input_shape=plan.task.input_shape,
        batch_size=len(labels),
        recipe=recipe,
    )
    victim = rebuild(seen, known, dtype=torch.float64)
    rng = stream(experiment.seed, "gauge", number)
    return influence(victim, inputs, labels, relative_noises=NOISES, rng=rng)


def _kind(plan: Plan, recipe: LocalRecipe) -> Kind:
    if plan.threat.hears_sum:
        return Kind.AGGREGATE
    return Kind.DELTA if recipe.num_steps > 1 else Kind.GRADIENT


def _over_clients(found: list[Influence]) -> tuple[Ceilings, ...]:
    rows = []
    for ceilings in zip(*(one.ceilings for one in found), strict=True):
        quality = [one.psnr_db for one in ceilings]
        rows.append(
            Ceilings(
                relative_noise=ceilings[0].relative,
                noise=statistics.median(one.noise for one in ceilings),
                psnr_db=(statistics.median(quality), min(quality), max(quality)),
                determined=statistics.median(one.determined for one in ceilings),
            )
        )
    return tuple(rows)


def _applies(name: str, plan: Plan, known: Knowledge) -> Applies:
    """Ask an attack, with its default settings, whether it could be run."""
    attack: Attack = load(ATTACKS[name])()
    if missing := plan.threat.missing(attack.needs):
        lacks = " and ".join(f"'{capability}'" for capability in missing)
        verb = "is" if len(missing) == 1 else "are"
        return Applies(name=name, applies=False, why=f"needs {lacks}, which {verb} not granted")
    try:
        attack.check(known)
    except AttackFailed as failed:
        return Applies(name=name, applies=False, why=str(failed))
    return Applies(name=name, applies=True)
