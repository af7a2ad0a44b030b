"""What a client puts away for scoring, and for nobody else."""

from attacks.observation import Tensors
from attacks.threats import Capability
from clients.local_training import LocalUpdate
from clients.participant import Participant
from fedsim import truth
from fedsim.records import RunDirectory
from fedsim.threat import threat_of


def seal(
    run: RunDirectory,
    me: Participant,
    server_round: int,
    update: LocalUpdate,
    *,
    sent: Tensors | None = None,
    weights: Tensors | None = None,
) -> None:
    """Put the private batch away for scoring, and hand an oracle the labels if it is granted.

    Args:
        run: Where.
        me: The client.
        server_round: The round.
        update: What local training came to.
        sent: Of a peer, whose neighbours must isolate it: the update, after its defenses.
        weights: Of a peer: the weights that the update was computed at.
    """
    inputs, labels = me.inputs[update.used], me.labels[update.used]
    truth.seal(run, server_round, me.name, inputs, labels, update=sent, weights=weights)
    if Capability.LABELS in threat_of(me.experiment).grants:
        run.write_oracle_labels(server_round, me.name, labels)
