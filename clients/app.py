"""The ClientApp: unpacks a message, lets pure functions do the work, packs the reply."""

from collections.abc import Mapping
from functools import lru_cache
from typing import cast

from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from attacks.observation import Tensors
from clients.checking import build_checks, inspect
from clients.checks.alarm import Alarm, Check
from clients.defending import defend
from clients.encrypting import encrypt, encrypt_model, meet, tell_key
from clients.local_training import local_update
from clients.meddling import meddle
from clients.memory import Memory
from clients.neighbour import overhear
from clients.once import once
from clients.participant import Participant, participant
from clients.peer import Peer
from clients.sealing import seal
from clients.secure_aggregation import SecureClient, dropped
from clients.together import Ready
from fedsim import peer_wire, sealed_wire
from fedsim.config import ClientsConfig, Experiment
from fedsim.defenses import (
    Defense,
    TrainingDefense,
    UpdateDefense,
    build_chain,
    private_clients,
)
from fedsim.ledger import participations
from fedsim.peers import federation
from fedsim.privacy import Accounted, share_of
from fedsim.secure_sum import messages as secure_messages
from fedsim.secure_sum.settings import Stage, settings_of
from fedsim.tasks import evaluate
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
    arrays_in,
    config_in,
    read_run_directory,
    shared_parameters,
    to_packed_record,
    to_record,
)

PROXIMAL_MU = "proximal-mu"
"""The key under which Flower's FedProx sends its weight."""

app = ClientApp(mods=[once])


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
    me.workplace.load(arrays_in(message.content))
    config = config_in(message.content)
    server_round = _integer(config[ROUND])
    run = read_run_directory(context.run_config, config)
    chain = chain_for(me)
    secure = None
    if (settings := settings_of(chain)) is not None:
        secure = SecureClient.of(message, context, me, settings)
        if secure.drops(Stage.MASKED):
            return dropped(message, Stage.MASKED)
    alarms = inspect(me, checks_of(me.experiment), server_round, run)
    if alarms and me.experiment.clients.on_alarm == "refuse":
        return Message(Error(REFUSED, _refusal(alarms)), reply_to=message)
    links = any(isinstance(defense, UpdateDefense) for defense in chain.values())
    before: Tensors = {}
    if links:
        before = {name: tensor.clone() for name, tensor in shared_parameters(me.model).items()}
    update = local_update(
        me.model,
        me.workplace.loss,
        me.inputs,
        me.labels,
        me.experiment.training,
        seed=me.experiment.seed,
        server_round=server_round,
        client=me.number,
        proximal_mu=float(str(config.get(PROXIMAL_MU, 0.0))),
        defense=_gradient_source(me, chain, server_round),
    )
    scope = me.experiment.adversary
    heard = scope.listens_in(server_round) if secure else scope.hears(server_round, me.number)
    if run is not None and heard:  # a sum that is heard has every client's data behind it
        seal(run, me, server_round, update)
    if links:
        update = defend(
            me,
            update,
            chain,
            before=before,
            server_round=server_round,
            memory=Memory(me.name, run, context.state),
        )
    if secure is not None:
        masked = secure.mask(message.content, update, tells_loss=not private_clients(chain))
        return Message(masked, reply_to=message)
    metrics = MetricRecord({NUM_EXAMPLES: update.num_examples})
    if not private_clients(chain):
        metrics[TRAIN_LOSS] = update.train_loss
    tensors = update.tensors
    packed = to_packed_record(tensors) if links else to_record(tensors, final=True)
    content = RecordDict({ARRAYS: packed, METRICS: metrics})
    if update.buffers:
        content[BUFFERS] = to_record(update.buffers, final=True)
    return Message(content, reply_to=message)


def _gradient_source(
    me: Participant, chain: Mapping[str, Defense], server_round: int
) -> TrainingDefense | None:
    """Return what computes gradients in place of plain differentiation, if anything does."""
    ready = me.workplace.ready.pop((server_round, me.number), None)
    if ready is not None:
        return Ready(ready)
    return next((one for one in chain.values() if isinstance(one, TrainingDefense)), None)


@app.query(sealed_wire.TELL_KEY)
def tell_public_key(message: Message, context: Context) -> Message:
    """Among peers that encrypt what they say: tell a public key."""
    return tell_key(message, context)


@app.query(sealed_wire.MEET)
def meet_others(message: Message, context: Context) -> Message:
    """Among peers that encrypt what they say: take the public keys of all."""
    return meet(message, context)


@app.train(peer_wire.STEP, mods=[encrypt, overhear, meddle])
def step_among_peers(message: Message, context: Context) -> Message:
    """Take a hop of the protocol between peers."""
    return _peer(message, context).step(message)


@app.query(peer_wire.REPORT, mods=[encrypt_model])
def report_model(message: Message, context: Context) -> Message:
    """Tell the simulator the model of this peer."""
    return _peer(message, context).report(message)


@app.query(peer_wire.ADOPT, mods=[encrypt, overhear])
def adopt_model(message: Message, context: Context) -> Message:
    """Begin anew from another peer's model."""
    return _peer(message, context).adopt(message)


def _peer(message: Message, context: Context) -> Peer:
    text = str(context.run_config[EXPERIMENT])
    me = participant(text, _number(context))
    run = read_run_directory(context.run_config, config_in(message.content))
    return Peer(me=me, federation=federation(text), chain=chain_for(me), run=run, context=context)


@app.query(secure_messages.ADVERTISE_KEYS)
def advertise_keys(message: Message, context: Context) -> Message:
    """Secure aggregation, first stage: send public keys."""
    return _secure_reply(message, context, Stage.KEYS)


@app.query(secure_messages.SHARE_KEYS)
def share_keys(message: Message, context: Context) -> Message:
    """Secure aggregation, second stage: deal out encrypted shares; the third is `train`."""
    return _secure_reply(message, context, Stage.SHARES)


@app.query(secure_messages.UNMASK)
def unmask(message: Message, context: Context) -> Message:
    """Secure aggregation, last stage: reveal what takes the masks off the sum."""
    return _secure_reply(message, context, Stage.UNMASK)


def _secure_reply(message: Message, context: Context, stage: Stage) -> Message:
    me = participant(str(context.run_config[EXPERIMENT]), _number(context))
    client = SecureClient.of(message, context, me, settings_of(chain_of(me.experiment)))
    if client.drops(stage):
        return dropped(message, stage)
    if stage is Stage.KEYS:
        part = client.advertise()
    elif stage is Stage.SHARES:
        part = client.share(message.content)
    else:
        part = client.reveal(message.content)
    return Message(RecordDict({secure_messages.SECURE: part}), reply_to=message)


@app.evaluate()
def evaluate_locally(message: Message, context: Context) -> Message:
    """Evaluate the weights received on this client's own data."""
    me = participant(str(context.run_config[EXPERIMENT]), _number(context))
    me.workplace.load(arrays_in(message.content))
    accuracy, loss = evaluate(me.model, me.inputs, me.labels)
    metrics = MetricRecord({NUM_EXAMPLES: len(me.inputs), "accuracy": accuracy, "loss": loss})
    return Message(RecordDict({METRICS: metrics}), reply_to=message)


@lru_cache(maxsize=2)
def _checks(config: str) -> dict[str, Check]:
    return build_checks(ClientsConfig.model_validate_json(config))


def checks_of(experiment: Experiment) -> dict[str, Check]:
    """Return the checks of an experiment, made once per process."""
    if not experiment.clients.checks:
        return {}
    return _checks(experiment.clients.model_dump_json())


@lru_cache(maxsize=2)
def _chain(config: str) -> dict[str, Defense]:
    return build_chain(Experiment.model_validate_json(config))


def chain_of(experiment: Experiment) -> dict[str, Defense]:
    """Return the defenses of an experiment by title, in order, made once per process."""
    if not experiment.defenses:
        return {}
    return _chain(experiment.model_dump_json())


@lru_cache(maxsize=1024)
def _tailored(config: str, client: int, num_examples: int) -> dict[str, Defense]:
    experiment, chain = Experiment.model_validate_json(config), _chain(config)
    rounds = participations(experiment, experiment.rounds)[client]
    share = share_of(experiment.training, num_examples, rounds)
    return {
        title: cast(Defense, one.tailored(share)) if isinstance(one, Accounted) else one
        for title, one in chain.items()
    }


def chain_for(me: Participant) -> dict[str, Defense]:
    """Return the defenses of a client by title, in order: how much noise may depend on its data."""
    chain = chain_of(me.experiment)
    if not private_clients(chain):
        return chain
    return _tailored(me.experiment.model_dump_json(), me.number, len(me.inputs))


def _refusal(alarms: list[Alarm]) -> str:
    more = f" and {len(alarms) - 1} more" if len(alarms) > 1 else ""
    return f"the client refused to train: '{alarms[0].check}': {alarms[0].message}{more}"


def _number(context: Context) -> int:
    return _integer(context.node_config[PARTITION])


def _integer(value: object) -> int:
    if not isinstance(value, int):
        raise TypeError(f"expected a whole number, got {value!r}")
    return value
