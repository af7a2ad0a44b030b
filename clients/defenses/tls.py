"""Encrypted links: who taps one hears how long messages are, and nothing else.

No paper: in a simulation nothing is encrypted, a tap is merely shown what TLS
(https://www.rfc-editor.org/rfc/rfc8446) would leave it. It
does not pad, so that sizes and the presence of a message stay visible, and a compressed update may
tell by its size how many values it has. The server is at the end of the link and hears everything.
"""

from dataclasses import dataclass
from typing import ClassVar

from attacks.observation import Knowledge, Observation
from fedsim.defenses import Place


@dataclass(frozen=True, kw_only=True)
class TLS:
    """Encrypts the links between clients and server."""

    place: ClassVar[Place] = Place.WIRE
    encrypts_links: ClassVar[bool] = True

    def read(self, seen: Observation, known: Knowledge) -> tuple[Observation, Knowledge]:
        """Change nothing: at the end of a link it is gone, and in between nothing is left."""
        return seen, known
