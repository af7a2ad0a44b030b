"""What a client does with checks: it runs them on what it received, before it trains on it."""

from collections.abc import Mapping

from attacks.global_generators import global_generators
from attacks.observation import Tensors
from clients.checks import CHECKS
from clients.checks.alarm import Alarm, Check, Situated, reach_of
from clients.participant import Participant
from fedsim.components import build
from fedsim.config import ClientsConfig
from fedsim.errors import ConfigError
from fedsim.records import RunDirectory
from fedsim.seeds import derive
from fedsim.wire import shared_parameters


def build_checks(config: ClientsConfig) -> dict[str, Check]:
    """Return the checks that an experiment names, with their settings.

    Raises:
        ConfigError: There is no such check, or it does not take these options.
    """
    checks: dict[str, Check] = {}
    for name in config.checks:
        try:
            check = build("check", name, CHECKS, options=config.options.get(name, {}))
        except ConfigError as error:
            raise ConfigError(f"clients.checks: {error}") from error
        if not isinstance(check, Check):
            raise ConfigError(
                f"clients.checks: '{name}' is no check: {type(check).__name__} must have `check`, "
                "as clients.checks.alarm.Check says"
            )
        checks[name] = check
    return checks


def inspect(
    me: Participant, checks: Mapping[str, Check], server_round: int, run: RunDirectory | None
) -> list[Alarm]:
    """Return the alarms that the weights received give rise to, and record them.

    The weights are kept in the run directory until the client's next round: a client has no memory
    of its own, so that a resumed run raises the same alarms.

    Args:
        me: Its model holds the weights received.
        checks: Which, by name.
        server_round: The round.
        run: Where alarms are recorded; None records nothing and knows no earlier weights.
    """
    if not checks:
        return []
    before: Tensors | None = None
    reach = _reach(me, server_round, run)
    if run is not None:
        before = run.last_received(me.name, server_round, shared_parameters(me.model))
    device = me.inputs.device
    if before is not None:
        before = {name: tensor.to(device) for name, tensor in before.items()}
    alarms: list[Alarm] = []
    path = ("round", server_round, "client", me.number, "checks")
    with global_generators(derive(me.experiment.seed, *path), device):
        for named in checks.values():
            check = named.in_situation(reach) if isinstance(named, Situated) else named
            alarms += check.check(me.model, me.inputs, me.labels, before)
    if run is not None:
        found = [
            {"check": a.check, "message": a.message, "value": a.value, "threshold": a.threshold}
            for a in alarms
        ]
        run.write_alarms(server_round, me.name, found)
    return alarms


def _reach(me: Participant, server_round: int, run: RunDirectory | None) -> float:
    """Return the sum of the step sizes since this client last received weights."""
    pattern = f"{me.name}-round-*.safetensors"
    kept = () if run is None else (run.root / "received").glob(pattern)
    rounds = [int(path.stem.rpartition("-")[2]) for path in kept]
    last = max((number for number in rounds if number < server_round), default=server_round - 1)
    training = me.experiment.training
    return reach_of(
        training.learning_rate,
        training.momentum,
        training.num_local_steps(len(me.inputs)),
        server_round - last,
    )
