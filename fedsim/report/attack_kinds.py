"""What a reader must know of an attack before its numbers: oracle, active, several rounds."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from attacks import ATTACKS
from attacks.observation import ActiveAttack
from attacks.threats import ORACLE
from fedsim.components import build
from fedsim.errors import ConfigError
from fedsim.files import Record, reading
from fedsim.records import RunDirectory
from fedsim.report.reading import attack_label


@dataclass(frozen=True, kw_only=True)
class AttackKind:
    """What sets an attack apart.

    Attributes:
        oracle: Whether it uses private labels that it was told.
        active: Whether it changes what is sent.
        join_rounds: How many rounds of a victim it puts together.
    """

    oracle: bool = False
    active: bool = False
    join_rounds: int = 1

    @property
    def words(self) -> str:
        """All of this for a table, such as "oracle, 3 rounds joined"; empty for a plain attack."""
        joined = f"{self.join_rounds} rounds joined" if self.join_rounds > 1 else ""
        marks = ("oracle" if self.oracle else "", "active" if self.active else "", joined)
        return ", ".join(mark for mark in marks if mark)


def attack_kinds(run: RunDirectory, threat: Record | None) -> dict[str, AttackKind]:
    """Return the kind of every attack of an experiment, by label.

    Only attacks of this program are built and asked. Of others, whose code a page must not run, as
    much is assumed as the threat model grants.
    """
    with reading(run.config):
        listed = run.read_config().get("attacks", [])
        return {attack_label(one): _kind(one, threat) for one in listed}


def _kind(one: Mapping[str, Any], threat: Record | None) -> AttackKind:
    joined = int(one.get("join_rounds", 1))
    if one["name"] in ATTACKS:
        try:
            attack = build("attack", one["name"], ATTACKS, options=one.get("options", {}))
        except ConfigError:  # of an earlier version, with settings that are gone
            pass
        else:
            return AttackKind(
                oracle=bool(attack.needs & ORACLE),
                active=isinstance(attack, ActiveAttack),
                join_rounds=joined,
            )
    return AttackKind(
        oracle=bool(threat and threat["oracle"]),
        active=bool(threat and threat["active"]),
        join_rounds=joined,
    )
