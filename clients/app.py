"""The ClientApp: unpacks a message, lets pure functions do the work, packs the reply."""

from functools import lru_cache

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from attacks.threats import Capability
from clients.checking import build_checks, inspect
from clients.checks.alarm import Alarm, Check
from clients.defending import defend
from clients.local_training import LocalUpdate, local_update
from clients.memory import Memory
from clients.participant import Participant, participant
from fedsim import truth
from fedsim.config import ClientsConfig, Experiment
from fedsim.defenses import Defense, UpdateDefense, build_chain, with_penalties
from fedsim.records import RunDirectory
from fedsim.tasks import evaluate
from fedsim.threat import threat_of
from fedsim.wire import (
    ARRAYS,
    BUFFERS,
    CONFIG,
    EXPERIMENT,
    METRICS,
    NUM_EXAMPLES,
    PARTITION,
    REFUSED,
    ROUND,
    TRAIN_LOSS,
    load_state,
    read_run_directory,
    shared_parameters,
    to_packed_record,
    to_record,
    to_tensors,
)

PROXIMAL_MU = "proximal-mu"
"""The key under which Flower's FedProx sends its weight."""

app = ClientApp()


@app.query()
def identify(message: Message, context: Context) -> Message:
    """Say which client this node plays."""
    return Message(
        RecordDict({CONFIG: ConfigRecord({PARTITION: _number(context)})}), reply_to=message
    )


@app.train()
def train(message: Message, context: Context) -> Message:
    """Compute one local update, seal the private batch, and send the update."""
    me = participant(str(context.run_config[EXPERIMENT]), _number(context))
    load_state(me.model, to_tensors(message.content.array_records[ARRAYS]))
    config = message.content.config_records[CONFIG]
    server_round = _integer(config[ROUND])
    run = read_run_directory(context.run_config, config)
    alarms = inspect(me, checks_of(me.experiment), server_round, run)
    if alarms and me.experiment.clients.on_alarm == "refuse":
        return Message(Error(REFUSED, _refusal(alarms)), reply_to=message)
    chain = chain_of(me.experiment)
    before = {name: tensor.clone() for name, tensor in shared_parameters(me.model).items()}
    update = local_update(
        me.model,
        with_penalties(me.task.loss, me.model),
        me.inputs,
        me.labels,
        me.experiment.training,
        seed=me.experiment.seed,
        server_round=server_round,
        client=me.number,
        proximal_mu=float(str(config.get(PROXIMAL_MU, 0.0))),
    )
    if run is not None and me.experiment.adversary.hears(server_round, me.number):
        seal(run, me, server_round, update)
    update = defend(
        me,
        update,
        chain,
        before=before,
        server_round=server_round,
        memory=Memory(me.name, run, context.state),
    )
    metrics = MetricRecord({NUM_EXAMPLES: len(update.used), TRAIN_LOSS: update.train_loss})
    packed = any(isinstance(defense, UpdateDefense) for defense in chain.values())
    to_wire = to_packed_record if packed else to_record
    content = RecordDict({ARRAYS: to_wire(update.tensors), METRICS: metrics})
    if update.buffers:
        content[BUFFERS] = to_record(update.buffers)
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate_locally(message: Message, context: Context) -> Message:
    """Evaluate the weights received on this client's own data."""
    me = participant(str(context.run_config[EXPERIMENT]), _number(context))
    load_state(me.model, to_tensors(message.content.array_records[ARRAYS]))
    accuracy, loss = evaluate(me.model, me.inputs, me.labels)
    metrics = MetricRecord({NUM_EXAMPLES: len(me.inputs), "accuracy": accuracy, "loss": loss})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


def seal(run: RunDirectory, me: Participant, server_round: int, update: LocalUpdate) -> None:
    """Put the private batch away for scoring, and hand an oracle the labels if it is granted."""
    inputs, labels = me.inputs[update.used], me.labels[update.used]
    truth.seal(run, server_round, me.name, inputs, labels)
    if Capability.LABELS in threat_of(me.experiment).grants:
        run.write_oracle_labels(server_round, me.name, labels)


@lru_cache(maxsize=2)
def _checks(config: str) -> dict[str, Check]:
    return build_checks(ClientsConfig.model_validate_json(config))


def checks_of(experiment: Experiment) -> dict[str, Check]:
    """Return the checks of an experiment, made once per process."""
    return _checks(experiment.clients.model_dump_json())


@lru_cache(maxsize=2)
def _chain(config: str) -> dict[str, Defense]:
    return build_chain(Experiment.model_validate_json(config))


def chain_of(experiment: Experiment) -> dict[str, Defense]:
    """Return the defenses of an experiment by title, in order, made once per process."""
    if not experiment.defenses:
        return {}
    return _chain(experiment.model_dump_json())


def _refusal(alarms: list[Alarm]) -> str:
    more = f" and {len(alarms) - 1} more" if len(alarms) > 1 else ""
    return f"the client refused to train: '{alarms[0].check}': {alarms[0].message}{more}"


def _number(context: Context) -> int:
    return _integer(context.node_config[PARTITION])


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value
