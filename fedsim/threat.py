"""The threat model of an experiment, with everything it is granted."""

from collections.abc import Iterable
from itertools import compress

from attacks.threats import ACTIVE, THREATS, Capability, ThreatModel
from fedsim.catalog import nearest
from fedsim.config import Experiment
from fedsim.errors import ConfigError
from fedsim.files import Record

MEANING = {
    Capability.WEIGHTS: "hears the weights in force when the update was computed",
    Capability.ARCHITECTURE: "knows the model's architecture and the loss",
    Capability.INPUT_DOMAIN: "knows the shape of an input and the range of its values",
    Capability.BATCH_SIZE: "knows how many examples are behind an update",
    Capability.LOCAL_RECIPE: "knows how clients train: steps, learning rate, momentum",
    Capability.BATCHNORM_STATISTICS: "hears the running statistics of normalisation layers",
    Capability.DEFENSE: "knows which defenses are in force",
    Capability.PUBLIC_SAMPLE: "has examples of the same kind that belong to no client",
    Capability.LABELS: "ORACLE: is told the private labels; an upper bound, no real adversary",
    Capability.CHANGE_WEIGHTS: "sends clients weights of its own choice",
    Capability.CHANGE_ARCHITECTURE: "sends clients a model of its own choice",
}
"""What each capability means, for people."""


def threat_of(experiment: Experiment) -> ThreatModel:
    """Return the experiment's threat model, extra grants included.

    Raises:
        ConfigError: There is no such threat model, or it cannot use what it is granted.
    """
    name = experiment.adversary.threat
    if name not in THREATS:
        raise ConfigError(f"adversary.threat: unknown threat '{name}'{nearest(name, THREATS)}")
    extra = frozenset(experiment.adversary.grants)
    threat = THREATS[name]
    if not threat.active and (active := extra & ACTIVE):
        first = next(str(capability) for capability in Capability if capability in active)
        raise ConfigError(
            f"adversary.grants: '{first}' is for adversaries that change what is sent; "
            f"'{name}' only listens; there are {_names(one.active for one in THREATS.values())}"
        )
    if threat.hears_sum:
        _check_sum(experiment, threat)
    return threat.with_grants(extra)


def _names(wanted: Iterable[bool]) -> str:
    return ", ".join(f"'{name}'" for name in compress(THREATS, wanted))


def _check_sum(experiment: Experiment, threat: ThreatModel) -> None:
    """Refuse what an adversary that hears only means of gradients cannot be asked for."""
    if not threat.active and experiment.adversary.victims != "all":
        raise ConfigError(
            f"adversary.victims must be 'all' for threat '{threat.name}', which hears no client "
            f"alone, got {experiment.adversary.victims}"
        )
    steps = experiment.training.max_local_steps
    if experiment.training.algorithm == "fedavg" and steps != 1:
        raise ConfigError(
            f"threat '{threat.name}' hears means of gradients, and clients take several local "
            "steps; set training.max_local_steps = 1, or training.algorithm = 'fedsgd'"
        )


def threat_record(threat: ThreatModel) -> Record:
    """Return the threat model as the run directory holds it."""
    return {
        "name": threat.name,
        "position": str(threat.position),
        "active": threat.active,
        "oracle": threat.oracle,
        "hears_sum": threat.hears_sum,
        "summary": threat.summary,
        "grants": [
            {"capability": str(capability), "meaning": MEANING[capability]}
            for capability in Capability
            if capability in threat.grants
        ],
    }
