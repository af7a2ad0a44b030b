"""Check an experiment whole before anything starts, and write down what it assumes."""

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

import fedsim
from attacks.observation import ActiveAttack, Attack, AttackFailed, Knowledge, LocalRecipe
from attacks.threats import Capability, ThreatModel
from fedsim.catalog import BUILD_CHECKS, BUILD_STRATEGY, load, nearest
from fedsim.config import Experiment
from fedsim.data.public import public_sample
from fedsim.defenses import Particular, build_chain
from fedsim.engines import ENGINES
from fedsim.errors import ConfigError, FedsimError, trail
from fedsim.examples import write_data
from fedsim.files import Record, replace_bytes, replace_json
from fedsim.knowledge import (
    knowledge_from,
    knowledge_record,
    recipe_of,
    without_defenses,
    write_knowledge,
)
from fedsim.named_attacks import build_attack
from fedsim.records import FORMAT, RunDirectory
from fedsim.seeds import stream
from fedsim.setup import most_distinct, most_local_steps, shares_of, task_of
from fedsim.stages.prepare_peers import check_peers, topology_record
from fedsim.tasks import Task
from fedsim.threat import places_of, threat_of, threat_record

_PACKAGES = ("flwr", "numpy", "opacus", "ray", "safetensors", "torch", "torchvision")


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """A checked experiment.

    Attributes:
        experiment: As read.
        task: Its data, model and loss.
        threat: Its adversary.
        told: What the adversary is told, as JSON holds it.
        public_sample: Inputs of the test split that belong to no client, shape (N, C, H, W).
    """

    experiment: Experiment
    task: Task
    threat: ThreatModel
    told: Record
    public_sample: Tensor


def check(experiment: Experiment) -> Plan:
    """Resolve every name and refuse what cannot work.

    Raises:
        ConfigError: Something cannot be; the message says where and what to do.
        DataMissing: The data are not there.
    """
    try:
        return _check(experiment)
    except FedsimError:
        raise
    except Exception as error:  # models, data and attacks may be the user's own code
        raise ConfigError(
            f"the experiment cannot be set up: {type(error).__name__}: {error} "
            f"(at {trail(error, 1)[0]})"
        ) from error


def _check(experiment: Experiment) -> Plan:
    name = experiment.engine.name
    if name not in ENGINES and ":" not in name:
        raise ConfigError(f"engine.name: unknown engine '{name}'{nearest(name, ENGINES)}")
    _check_devices(experiment)
    threat = threat_of(experiment)
    # refuses unknown names and options
    strategy = None if experiment.decentralised else load(BUILD_STRATEGY)(experiment)
    load(BUILD_CHECKS)(experiment.clients)  # so does this
    attacks = {config.title: build_attack(config) for config in experiment.attacks}
    join_rounds = {config.title: config.join_rounds for config in experiment.attacks}
    for title, attack in attacks.items():
        if not isinstance(attack, Attack):
            raise ConfigError(
                f"attack '{title}' is no attack: {type(attack).__name__} must have `needs`, "
                "`check` and `__call__`, as attacks.observation.Attack says"
            )
        _check_rounds(title, attack, join_rounds[title])
        if isinstance(attack, ActiveAttack) and not threat.active:
            raise ConfigError(
                f"attack '{title}' changes what clients are sent, and threat '{threat.name}' only "
                "listens; set adversary.threat = 'malicious-server', or another that is active"
            )
        if missing := threat.missing(attack.needs):
            lacks = ", ".join(f"'{capability}'" for capability in missing)
            raise ConfigError(
                f"attack '{title}' needs {lacks}, which threat '{threat.name}' does not grant; "
                "choose another attack or threat, or add it to adversary.grants"
            )
    chain = build_chain(experiment)
    if experiment.decentralised:
        check_peers(experiment, chain)
    task = task_of(experiment)
    shares = shares_of(experiment, task)
    _try_one_batch(experiment, task)
    for defense in chain.values():
        if isinstance(defense, Particular):
            defense.check(experiment, task.build_model(stream(experiment.seed, "model")))
    recipe, num_heard = LocalRecipe(batch_size=experiment.training.batch_size), 1
    if threat.hears_sum:  # a mean of gradients, whatever clients send
        num_heard = experiment.server.clients_per_round or experiment.partition.clients
    else:
        recipe = recipe_of(
            experiment,
            most_local_steps(experiment, shares),
            proximal_mu=getattr(strategy, "proximal_mu", 0.0),  # Flower's FedProx, and its kind
        )
    told = knowledge_record(
        experiment,
        threat,
        input_shape=task.input_shape,
        num_classes=task.num_classes,
        recipe=recipe,
        batch_size=most_distinct(experiment, shares) * num_heard,
        tokens=task.tokens,
        columns=task.columns,
    )
    rng = stream(experiment.seed, "public-sample")
    sample = public_sample(task.data, experiment.adversary.public_sample, rng)
    plan = Plan(experiment=experiment, task=task, threat=threat, told=told, public_sample=sample)
    known = knowledge_from(told, granted_sample(plan))
    bare = knowledge_from(without_defenses(told), granted_sample(plan)) if chain else known
    for title, attack in attacks.items():
        _refuse_hopeless(title, attack, known, bare)
    return plan


def _check_rounds(title: str, attack: Attack, join_rounds: int) -> None:
    """Refuse to join rounds for an attack that takes one, or another number of them."""
    joins: bool | int = getattr(attack, "joins", False)
    wanted = max(1, joins)
    if joins is True or join_rounds == wanted:
        return
    if wanted > 1:
        raise ConfigError(
            f"attack '{title}' with these options puts {wanted} rounds together, got "
            f"join_rounds = {join_rounds}; set attacks.{title}.join_rounds = {wanted}"
        )
    raise ConfigError(
        f"attack '{title}' inverts one observation at a time, got join_rounds = {join_rounds}; "
        "leave join_rounds out, or choose an attack that takes several rounds (temporal, auto)"
    )


def _try_one_batch(experiment: Experiment, task: Task) -> None:
    """Train on one batch, as a client will: some layers refuse small batches or small images."""
    model = task.build_model(stream(experiment.seed, "model"))
    size = experiment.training.batch_size
    try:
        task.loss(model(task.data.train_inputs[:size]), task.data.train_labels[:size]).backward()  # type: ignore[no-untyped-call]
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model '{experiment.model.name}' cannot train on a batch of {size} inputs of shape "
            f"{task.input_shape}: {error}; change model.name or training.batch_size"
        ) from error


def _refuse_hopeless(title: str, attack: Attack, known: Knowledge, bare: Knowledge) -> None:
    """Ask the attack whether it could ever work on such an experiment.

    One that a defense stops, and nothing else, is let in: that it fails is a result.

    Args:
        title: The attack's.
        attack: The attack.
        known: What will be granted.
        bare: What would be, without any defense.
    """
    try:
        attack.check(known)
    except AttackFailed as failed:
        if bare is not known and not _refuses(attack, bare):
            return
        raise ConfigError(f"attack '{title}' cannot work here: {failed}") from failed


def _refuses(attack: Attack, known: Knowledge) -> bool:
    try:
        attack.check(known)
    except AttackFailed:
        return True
    return False


def _check_devices(experiment: Experiment) -> None:
    for key in ("device", "attack_device"):
        name = getattr(experiment.engine, key)
        if key == "attack_device" and name == "auto":
            continue
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ConfigError(f"engine.{key} must name a device, got '{name}'") from error
        if device.type == "cuda" and not torch.cuda.is_available():
            raise ConfigError(f"engine.{key} is '{name}', but no GPU is available here; use 'cpu'")


def granted_sample(plan: Plan) -> Tensor | None:
    """Return the public sample if the adversary has it."""
    return plan.public_sample if Capability.PUBLIC_SAMPLE in plan.threat.grants else None


def write_plan(plan: Plan, run: RunDirectory) -> None:
    """Write what the run assumes: experiment, environment, threat model, knowledge."""
    replace_json(run.environment, environment())
    places = places_of(plan.experiment) if plan.experiment.decentralised else None
    replace_json(run.root / "threat.json", threat_record(plan.threat, places))
    write_knowledge(run, plan.told, granted_sample(plan))
    write_data(run, plan.task)
    if plan.experiment.decentralised:
        replace_json(run.topology, topology_record(plan.experiment))
    replace_bytes(run.config, plan.experiment.to_toml().encode())  # last: it makes it a run


def environment() -> Record:
    """Return versions and hardware; no names of people, machines or folders."""
    return {
        "format": FORMAT,
        "fedsim": fedsim.__version__,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "gpu": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
