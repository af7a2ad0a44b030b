"""An eavesdropper on a real network: a relay between SuperNodes and SuperLink that listens.

It hands every byte on as it came. Beside that, what crosses in the clear is taken apart: messages
are rebuilt from the requests, and go to the same ear as those of a simulated tap. Of what crosses
encrypted there is nothing but sizes and times.
"""

from attacks.threats import THREATS, Position
from fedsim.config import Experiment

WIRE_EAR = "server.adversaries.wire_ear:WireEar"
"""What hears rebuilt messages, by reference: fedsim never imports the server."""
LINKS_TAPPED = "links-tapped"
"""Key of the run configuration: whether links are tapped for real, and not by the server."""


def taps_links(experiment: Experiment) -> bool:
    """Whether the adversary taps links between nodes and a server, as a proxy can.

    Links between peers do not exist on Flower's hub: their taps stay at the relay.
    """
    threat = THREATS.get(experiment.adversary.threat)
    at_link = threat is not None and threat.position is Position.LINK
    return at_link and not experiment.decentralised
