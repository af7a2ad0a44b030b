"""What a run directory holds, read for people: settings by dotted key, text without paths."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from fedsim.files import reading
from fedsim.records import RunDirectory

PRIVATE = frozenset({"data.root", "output.directory", "engine.address"})
"""Settings that name folders or machines: pages and logs leave them out."""

_PATH = re.compile(r"(?<![\w/:.])(?:~|/)[^\s'\"<>|,;()\[\]]*/([^\s'\"<>|,;()\[\]/]*)")


def settings(run: RunDirectory) -> dict[str, Any]:
    """Return the experiment of a run as dotted keys, in order; attacks go by their label."""
    with reading(run.config):
        values = run.read_config()
        values["attacks"] = {attack_label(one): one for one in values.get("attacks", [])}
        return {key: value for key, value in _flat(values) if key not in PRIVATE}


def attack_labels(run: RunDirectory) -> list[str]:
    """Return the attacks of a run, in the order of its experiment."""
    with reading(run.config):
        return [attack_label(one) for one in run.read_config().get("attacks", [])]


def attack_label(attack: Mapping[str, Any]) -> str:
    """Return how records call an attack of the experiment."""
    return attack.get("label") or str(attack["name"]).replace(":", ".")


def heard_anything(run: RunDirectory) -> bool:
    """Whether the adversary of a run heard anything that can be attacked."""
    folders = (run.root / "observations", run.views)
    return any(any(folder.glob("*.json")) for folder in folders)


def in_words(named: Mapping[str, Any]) -> str:
    """Return a name with its options, as `clip (norm = 1.0)`."""
    options = ", ".join(f"{key} = {value}" for key, value in named.get("options", {}).items())
    return f"{named['name']} ({options})" if options else str(named["name"])


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def without_paths(text: str) -> str:
    """Return `text` with every absolute path cut down to its last part.

    Messages of the operating system name folders, and with them people and machines.
    """
    return _PATH.sub(r"…/\1", text)
