"""A peer's messages are decrypted before the peer hears them, and encrypted after it has spoken.

A Flower mod, the outermost: peers, and an adversary that is a peer, hear and say the same as
without encryption. Who carries their messages hears how long they are.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from flwr.app import ConfigRecord, Context, Message, RecordDict

from clients.keyring import KeyStore
from clients.neighbour import App
from fedsim import peer_wire
from fedsim.end_to_end import Keyring, Unreadable, Where
from fedsim.peer_wire import Addressed, deliver, delivered, integers, posts_of, take_posts, unread
from fedsim.peers import Federation, federation
from fedsim.protocols.peer_protocol import MessageKind
from fedsim.sealed_wire import FOR, put_public, put_sealed, roster_of, unsealed
from fedsim.wire import CONFIG, EXPERIMENT, PARTITION, ROUND, BadReply, read_run_directory


def tell_key(message: Message, context: Context) -> Message:
    """Tell this peer's public key; make the key, at first."""
    content = RecordDict()
    put_public(content, _store(message, context).own().public)
    return Message(content, reply_to=message)


def meet(message: Message, context: Context) -> Message:
    """Take the public keys of the others; those that are known already must not change.

    Raises:
        BadReply: They are none.
        KeysDiffer: One of them is another than before, or is said to be this peer's own.
    """
    store = _store(message, context)
    store.keep(store.own().meeting(roster_of(message.content)))
    return Message(RecordDict(), reply_to=message)


def encrypt(message: Message, context: Context, call_next: App) -> Message:
    """Let a peer take a hop of an encrypted protocol, or begin anew from a model."""
    everybody = federation(str(context.run_config[EXPERIMENT]))
    if not everybody.experiment.protocol.encrypted:
        return call_next(message, context)
    envelope = _envelope(message, context, everybody)
    plain = copy.copy(message)  # whoever sent it may still hold it, and must not read it
    plain.content = envelope.opened(message.content)
    reply = call_next(plain, context)
    if not reply.has_error():
        envelope.close(reply.content)
    return reply


def encrypt_model(message: Message, context: Context, call_next: App) -> Message:
    """Let a peer tell its model; if it is meant for another peer, encrypt it for that one."""
    reply = call_next(message, context)
    receiver = message.content.config_records[CONFIG].get(FOR)
    if receiver is None or reply.has_error():
        return reply
    if not isinstance(receiver, int):
        raise TypeError(f"'{FOR}' must be the number of a peer, got {receiver!r}")
    everybody = federation(str(context.run_config[EXPERIMENT]))
    envelope = _envelope(message, context, everybody)
    model = reply.content.array_records[peer_wire.MODEL]
    said = Addressed(
        sender=envelope.me,
        to=(receiver,),
        round=envelope.round,
        hop=0,
        arrays=model,
        about=peer_wire.about(MessageKind.MODEL),
    )
    reply.content = RecordDict()
    put_sealed(reply.content, [said], envelope.ring, envelope.where("adopt", envelope.round, 0))
    return reply


@dataclass(frozen=True, kw_only=True)
class _Envelope:
    """What one message to a peer says of where it belongs, and the peer's keys."""

    me: int
    federation: Federation
    ring: Keyring
    config: ConfigRecord

    @property
    def round(self) -> int:
        """Round that the message is about."""
        number = self.config[ROUND]
        if not isinstance(number, int):
            raise TypeError(f"'{ROUND}' must be a whole number, got {number!r}")
        return number

    @property
    def hop(self) -> int | None:
        """Hop in which the peer is asked to speak; None where it is to begin anew."""
        hop = self.config.get(peer_wire.HOP)
        return hop if isinstance(hop, int) else None

    def where(self, purpose: str, server_round: int, hop: int) -> Where:
        """Return where a message belongs."""
        collective = purpose == "hop" and self.federation.protocol.collective
        members = integers(self.config.get(peer_wire.MEMBERS)) if collective else []
        return Where(purpose=purpose, round=server_round, hop=hop, members=tuple(members))

    def opened(self, content: RecordDict) -> RecordDict:
        """Return a message with all that was said to the peer decrypted, as far as it can be."""
        plain = RecordDict(dict(content))
        take_posts(plain)
        for early in (False, True):
            deliver(plain, self._opened(delivered(content, early=early), early), early=early)
        return plain

    def _opened(self, said: Sequence[Addressed], early: bool) -> list[Addressed]:
        seen: set[tuple[int, int, int, int]] = set()
        plain = []
        for one in said:
            try:
                opened, place = unsealed(one, self.ring, self._expected(one, early))
                if (again := (one.sender, one.round, one.hop, place)) in seen:
                    raise Unreadable("it came twice")
                seen.add(again)
            except (Unreadable, BadReply) as error:
                opened = unread(one, str(error))
            plain.append(opened)
        return plain

    def _expected(self, one: Addressed, early: bool) -> Where:
        """Return where a message must belong to be heard now.

        Raises:
            Unreadable: It says itself that it belongs elsewhere.
        """
        if self.hop is None:
            return self.where("adopt", self.round, 0)
        now = (self.round, self.hop if early else self.hop - 1)
        said = (one.round, one.hop)
        if said != now and not (self.federation.protocol.delivers_late and said < now):
            raise Unreadable(f"it was said in round {one.round}, hop {one.hop}, not just before")
        return self.where("hop", *said)

    def close(self, content: RecordDict) -> None:
        """Encrypt what the peer says, in place."""
        said = posts_of(
            content,
            sender=self.me,
            server_round=self.round,
            hop=self.hop or 0,
            receivers=range(self.federation.network.num_peers),
        )
        take_posts(content)
        put_sealed(content, said, self.ring, self.where("hop", self.round, self.hop or 0))


def _envelope(message: Message, context: Context, everybody: Federation) -> _Envelope:
    store = _store(message, context)
    ring = store.load()
    if ring is None:
        raise Unreadable("this peer has no keys: nobody asked it for one")
    return _Envelope(
        me=store.peer,
        federation=everybody,
        ring=ring,
        config=message.content.config_records[CONFIG],
    )


def _store(message: Message, context: Context) -> KeyStore:
    run = read_run_directory(context.run_config, message.content.config_records[CONFIG])
    peer = context.node_config[PARTITION]
    if not isinstance(peer, int):
        raise TypeError(f"expected a whole number, got {peer!r}")
    return KeyStore(peer, run, context.state)
