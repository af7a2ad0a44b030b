"""What a tap on links between peers, or the relay that carries their messages, keeps of them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from attacks.threats import RELAY, Position
from fedsim.defenses import hides_messages
from fedsim.peer_wire import Addressed
from fedsim.peers import Federation
from fedsim.records import RunDirectory
from fedsim.threat import Places, places_of, threat_of
from fedsim.views import View, add_to_view, heard


@dataclass(frozen=True, kw_only=True)
class PeerEar:
    """Keeps what crosses some links.

    Attributes:
        name: How views call it.
        federation: Says what a sound message is, and which rounds it listens to.
        run: Where views go.
        places: Which links.
        encrypted: Whether what crosses them is: then it hears sizes alone.
    """

    name: str
    federation: Federation
    run: RunDirectory
    places: Places
    encrypted: bool = False

    def hear(self, said: Sequence[Addressed], server_round: int, hop: int, *, lost: int) -> None:
        """Keep what was said in a hop; `lost` as `fedsim.views.View` has it."""
        if not self.federation.experiment.adversary.listens_in(server_round):
            return
        mine = [
            replace(one, to=to)
            for one in said
            if (to := tuple(peer for peer in one.to if self.places.hear(one.sender, peer)))
        ]
        view = View(
            round=server_round,
            hop=hop,
            ear=self.name,
            lost=lost,
            messages=heard(mine, self.federation, hidden=self.encrypted),
        )
        add_to_view(self.run, view)

    def note_silence(self, silent: Sequence[int], server_round: int, hop: int) -> None:
        """Keep who did not answer in a hop: only who carries all messages can tell."""
        listens = self.federation.experiment.adversary.listens_in(server_round)
        if self.name == RELAY.name and listens:
            add_to_view(
                self.run, View(round=server_round, hop=hop, ear=self.name, silent=tuple(silent))
            )


def ear_of(federation: Federation, run: RunDirectory) -> PeerEar | None:
    """Return the ear of an adversary that is not a peer itself; None if it is."""
    experiment = federation.experiment
    position = threat_of(experiment).position
    if position not in (Position.LINK, Position.RELAY):
        return None
    at_link = position is Position.LINK
    return PeerEar(
        name="tap" if at_link else RELAY.name,
        federation=federation,
        run=run,
        places=places_of(experiment),
        encrypted=hides_messages(experiment),
    )
