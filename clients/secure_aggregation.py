"""What a client does in secure aggregation: it advertises keys, deals out shares, masks, unmasks.

What it must remember between the stages of a round (its secrets) lies where `clients.memory` keeps
what defenses remember: in a folder of the run directory that its owner alone may enter, else in
Flower's state of the node. It is forgotten when the round is over for this client.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from torch import Tensor

from attacks.observation import Tensors
from clients.local_training import LocalUpdate
from clients.participant import Participant
from fedsim.errors import FedsimError
from fedsim.files import replace_bytes
from fedsim.records import RunDirectory
from fedsim.secure_sum import messages
from fedsim.secure_sum.coordinator import Revealed
from fedsim.secure_sum.field import Contribution, Layout, encode
from fedsim.secure_sum.keys import ProtocolError, Random, seeded_random, system_random
from fedsim.secure_sum.member import Member
from fedsim.secure_sum.settings import Settings, Stage
from fedsim.seeds import stream
from fedsim.wire import ARRAYS, CONFIG, ROUND, read_run_directory, shared_buffers, to_tensors

_STATE = "secure-aggregation"


@dataclass(frozen=True)
class Secrets:
    """Where one client keeps its part of a sum between stages.

    Attributes:
        client: As records call it.
        run: The run directory; None for Flower's state.
        state: Flower's state of this node.
    """

    client: str
    run: RunDirectory | None
    state: RecordDict

    def load(self) -> Member:
        """Return what was kept last.

        Raises:
            ProtocolError: Nothing was: the client takes no part in a sum, or has done its part.
        """
        text = ""
        if self.run is None:
            record = self.state.config_records.get(_STATE)
            text = "" if record is None else str(record[_STATE])
        elif (path := self._path(self.run)).is_file():
            text = path.read_text()
        if not text:
            raise ProtocolError(f"{self.client} takes part in no sum, or has done its part")
        return Member.from_json(text)

    def keep(self, member: Member) -> None:
        """Keep this in place of what was kept before; forget all when its part is done."""
        text = "" if member.stage is None else member.to_json()
        if self.run is None:
            self.state[_STATE] = ConfigRecord({_STATE: text})
        elif text:
            self.run.memory.mkdir(mode=0o700, exist_ok=True)
            replace_bytes(self._path(self.run), text.encode())
        else:
            self._path(self.run).unlink(missing_ok=True)

    def _path(self, run: RunDirectory) -> Path:
        return run.memory / f"{_STATE}-{self.client}.json"


@dataclass(frozen=True)
class SecureClient:
    """One client at one stage.

    Attributes:
        me: The client.
        settings: What was agreed on.
        server_round: The round.
        secrets: What it keeps between stages.
    """

    me: Participant
    settings: Settings
    server_round: int
    secrets: Secrets

    @classmethod
    def of(
        cls, message: Message, context: Context, me: Participant, settings: Settings | None
    ) -> "SecureClient":
        """Return the client that a message is for.

        Raises:
            ProtocolError: The experiment has no secure aggregation.
        """
        if settings is None:
            raise ProtocolError("the experiment has no secure aggregation")
        config = message.content.config_records[CONFIG]
        server_round = config[ROUND]
        if not isinstance(server_round, int):
            raise TypeError(f"expected the number of a round, got {server_round!r}")
        run = read_run_directory(context.run_config, config)
        return cls(me, settings, server_round, Secrets(me.name, run, context.state))

    def drops(self, stage: Stage) -> bool:
        """Whether the experiment makes this client drop out here."""
        seed = self.me.experiment.seed
        return self.settings.drops(seed, self.server_round, self.me.number, stage)

    def advertise(self) -> ArrayRecord:
        """Draw this round's secrets and return the public keys."""
        experiment = self.me.experiment
        drawn = experiment.server.clients_per_round or experiment.partition.clients
        random: Random = system_random
        if self.settings.randomness == "seed":
            random = seeded_random(experiment.seed, *self._path("secrets"))
        member = Member.join(
            self.me.number, self._context, self.settings.threshold_of(drawn), random
        )
        self.secrets.keep(member)
        return messages.pack_keys({self.me.number: member.public_keys})

    def share(self, content: RecordDict) -> ArrayRecord:
        """Return encrypted shares for everybody whose keys came."""
        member = self._member()
        sealed = member.share(messages.read_keys(content))
        self.secrets.keep(member)
        return messages.pack_sealed(sealed)

    def mask(self, content: RecordDict, update: LocalUpdate, *, tells_loss: bool) -> RecordDict:
        """Return the masked update to send in place of `update`.

        Args:
            content: The message: weights, and who dealt out shares.
            update: After all other defenses.
            tells_loss: Whether the training loss is summed, too; else it counts as zero.

        Raises:
            ProtocolError: The message does not follow the protocol.
            FedsimError: The update holds NaN or infinity, which a sum would hide.
        """
        if messages.SECURE not in content.array_records:
            raise ProtocolError("an update was asked for without its masks: it is not sent")
        member = self._member()
        received = to_tensors(content.array_records[ARRAYS])
        own = contribution(self.me, update, received)
        if not tells_loss:
            own = replace(own, train_loss=0.0)
        vector = encode(
            own,
            Layout.of(own.update, own.buffers),
            self.settings.quantiser,
            self.settings.buffer_quantiser,
            field_bits=self.settings.field_bits,
            rng=stream(self.me.experiment.seed, *self._path("rounding")),
        )
        masked = member.mask(vector, messages.read_clients(content))
        self.secrets.keep(member)
        return RecordDict({messages.MASKED: messages.pack_masked(masked)})

    def reveal(self, content: RecordDict) -> ArrayRecord:
        """Return the shares that take the masks off the sum of the survivors."""
        member = self._member()
        revealed = member.reveal(messages.read_clients(content), messages.read_sealed(content))
        self.secrets.keep(member)
        return messages.pack_revealed(Revealed(*revealed))

    def _member(self) -> Member:
        member = self.secrets.load()
        if member.context != self._context:
            raise ProtocolError(f"{self.me.name} has no keys for {self._context}")
        return member

    @property
    def _context(self) -> str:
        return f"round {self.server_round}"

    def _path(self, what: str) -> tuple[str | int, ...]:
        return ("round", self.server_round, "client", self.me.number, _STATE, what)


def dropped(message: Message, stage: Stage) -> Message:
    """Return the answer of a client that an experiment makes drop out."""
    reason = f"the experiment makes it drop out at stage '{stage}'"
    return Message(Error(messages.DROPPED, reason), reply_to=message)


def contribution(me: Participant, update: LocalUpdate, received: Tensors) -> Contribution:
    """Return what a client adds to the sum: its gradient or how far its weights moved.

    Running statistics are summed as changes, too.

    Args:
        me: The client; its model has the names.
        update: What it would send otherwise.
        received: Weights and running statistics in force, by name.

    Raises:
        FedsimError: Something is NaN or infinite.
    """
    names = {name for name, _ in me.model.named_parameters()}
    sent = {**update.tensors, **update.buffers}
    changes: dict[str, Tensor] = {}
    for name in (*(name for name, _ in me.model.named_parameters()), *shared_buffers(me.model)):
        absolute = me.experiment.training.update_kind == "weights" or (
            me.experiment.training.update_kind == "gradient" and name not in names
        )
        new = sent[name].detach().cpu()
        changes[name] = new - received[name] if absolute else new
        if not torch.isfinite(changes[name]).all():
            raise FedsimError(f"'{name}' of the update holds NaN or infinity: it is not added")
    return Contribution(
        update={name: change for name, change in changes.items() if name in names},
        buffers={name: change for name, change in changes.items() if name not in names},
        num_examples=update.num_examples,
        train_loss=update.train_loss,
    )
