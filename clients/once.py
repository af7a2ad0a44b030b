"""A client answers a request once, and none that is older than one it has answered.

A network may bring a message twice, or long after the others. Who takes a hop of a protocol again
adds what it heard a second time; who answers a stage of a round that is over goes back in it.
"""

from collections.abc import Callable

from flwr.app import ConfigRecord, Context, Error, Message

from fedsim.wire import REPEATED, ticket_of

App = Callable[[Message, Context], Message]

ANSWERED = "fedsim-answered"
"""Record of a node's state: the newest request that it has answered."""
_SENDER, _NUMBER = "sender", "number"


def once(message: Message, context: Context, call_next: App) -> Message:
    """Answer a request with an error if it, or a newer one of the same server, was answered."""
    ticket = ticket_of(message.metadata.group_id)
    if ticket is None:  # of a server that does not number what it asks
        return call_next(message, context)
    last = context.state.get(ANSWERED)
    if not isinstance(last, ConfigRecord):
        last = ConfigRecord()
    newest = last.get(_NUMBER)
    if last.get(_SENDER) == ticket.sender and isinstance(newest, int) and ticket.number <= newest:
        again = "once more" if ticket.number == newest else "after a newer one"
        return Message(Error(REPEATED, f"a request came {again}"), reply_to=message)
    context.state[ANSWERED] = ConfigRecord({_SENDER: ticket.sender, _NUMBER: ticket.number})
    return call_next(message, context)
