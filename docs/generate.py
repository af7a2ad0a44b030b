"""Write the generated parts of the documentation: `python docs/generate.py`.

A generated part stands between `<!-- generated: NAME -->` and `<!-- end -->`. It is made from what
the program itself checks: the sections of an experiment, the parameters of what can be named, the
capabilities that threat models grant and attacks need. A test fails when a page is behind.
"""

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic.fields import FieldInfo

from attacks import ATTACKS
from attacks.threats import THREATS, Capability
from fedsim.catalog import CHECKS, load, summary
from fedsim.config import AttackConfig, DefenseConfig, Experiment
from fedsim.data import DATASETS, PARTITIONERS
from fedsim.defenses import DEFENSES, Place
from fedsim.models import MODELS
from fedsim.protocols import PROTOCOLS
from fedsim.sections import Section
from fedsim.threat import MEANING
from fedsim.topologies import MIXINGS, TOPOLOGIES
from fedsim.topologies.network import PeerNetwork

DOCS = Path(__file__).resolve().parent
PART = re.compile(r"(<!-- generated: (?P<name>[a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
GIVEN = {
    *("self", "root", "name", "input_shape", "num_classes", "num_clients", "rng", "seed"),
    *("num_peers", "server_round", "tokens"),
}
"""Parameters that fedsim fills in itself."""


def sections() -> str:
    """Return one table per section of an experiment."""
    plain, parts = [], []
    for key, field in Experiment.model_fields.items():
        if key == "attacks":
            parts.append(_section("[[attacks]]", AttackConfig))
        elif key == "defenses":
            parts.append(_section("[[defenses]]", DefenseConfig))
        elif inspect.isclass(field.annotation) and issubclass(field.annotation, Section):
            parts.append(_section(f"[{key}]", field.annotation))
        else:
            plain.append(_field(key, field))
    head = "### Top level\n\n" + _table(("key", "value", "default", "meaning"), plain)
    return "\n\n".join([head, *parts])


def _section(title: str, section: type[Section]) -> str:
    rows = [_field(key, field) for key, field in section.model_fields.items()]
    head = f"### `{title}`\n\n{inspect.getdoc(section)}"
    return f"{head}\n\n" + _table(("key", "value", "default", "meaning"), rows)


def _field(key: str, field: FieldInfo) -> tuple[str, ...]:
    rule = TypeAdapter(field.rebuild_annotation()).json_schema()
    default = inspect.Parameter.empty
    if not field.is_required():
        default = field.get_default(call_default_factory=True, validated_data={})
    return f"`{key}`", _values(rule), _default(default), _one_line(field.description or "")


def options(family: Mapping[str, str]) -> str:
    """Return one table of all options of a family of names; those without any stand below it."""
    rows: list[tuple[str, ...]] = []
    without = []
    for name, reference in family.items():
        factory = load(reference)
        named = [
            parameter
            for parameter in inspect.signature(factory).parameters.values()
            if parameter.name not in GIVEN
        ]
        meanings = _all_meanings(factory)
        made = _made_defaults(factory)
        rows += [
            (
                f"`{name}`" if parameter is named[0] else "",
                f"`{parameter.name}`",
                _allowed(parameter.annotation),
                _default(made.get(parameter.name, parameter.default)),
                meanings.get(parameter.name, ""),
            )
            for parameter in named
        ]
        if not named:
            without.append(f"`{name}`")
    table = _table(("name", "option", "value", "default", "meaning"), rows)
    return f"{table}\n\nWithout options: {', '.join(without)}." if without else table


def _allowed(rule: Any) -> str:
    """Return what an option may be; code can be given in Python alone."""
    try:
        return _values(TypeAdapter(rule).json_schema())
    except PydanticInvalidForJsonSchema:
        return "from Python"


def _made_defaults(factory: object) -> dict[str, object]:
    """Return the defaults of a dataclass that are made anew for each object."""
    if not dataclasses.is_dataclass(factory):
        return {}
    return {
        field.name: field.default_factory()
        for field in dataclasses.fields(factory)
        if field.default_factory is not dataclasses.MISSING
    }


def _all_meanings(factory: Callable[..., object]) -> dict[str, str]:
    """Return what a function says of its options, or a class and those that it inherits from."""
    documented = factory.__mro__[::-1] if isinstance(factory, type) else (factory,)
    found: dict[str, str] = {}
    for one in documented:
        found |= _meanings(inspect.cleandoc(one.__doc__ or ""))
    return found


def _meanings(docstring: str) -> dict[str, str]:
    """Return what a docstring in Google's style says of each parameter or attribute."""
    block = re.search(r"^(?:Args|Attributes):\n((?: +.*\n?|\n)*)", docstring, re.MULTILINE)
    entries = re.split(r"^ {4}(?=\w+:)", block.group(1) if block else "", flags=re.MULTILINE)
    pairs = (entry.partition(":") for entry in entries if ":" in entry)
    return {name: _one_line(text) for name, _, text in pairs}


def _values(rule: Mapping[str, Any]) -> str:
    """Say in words what a JSON schema allows."""
    if "$ref" in rule:  # the only definition that schemas of options and keys refer to
        return "capability"
    if "anyOf" in rule:
        return " or ".join(_values(one) for one in rule["anyOf"] if one.get("type") != "null")
    if "const" in rule or "enum" in rule:
        return " or ".join(f"`{one}`" for one in rule.get("enum", [rule.get("const")]))
    if rule.get("type") == "array":
        return f"list: {_values(rule['items'])}" if "items" in rule else "list"
    words = {
        "integer": "whole number",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "object": "table",
    }
    limits = {
        "minimum": "at least",
        "exclusiveMinimum": "above",
        "maximum": "at most",
        "exclusiveMaximum": "below",
    }
    found = [f"{word} {rule[limit]:g}" for limit, word in limits.items() if limit in rule]
    return ", ".join([words.get(rule.get("type", ""), "any"), *found])


def _default(value: object) -> str:
    if value is inspect.Parameter.empty:
        return "required"
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def capabilities() -> str:
    """Return the capabilities: what each means, and which threat model grants it."""
    rows = [
        (
            f"`{capability}`",
            MEANING[capability],
            *("yes" if capability in threat.grants else "" for threat in THREATS.values()),
        )
        for capability in Capability
    ]
    return _table(("capability", "the adversary", *(f"`{name}`" for name in THREATS)), rows)


def needs() -> str:
    """Return what each attack needs, with its default settings."""
    required = {name: load(reference)().needs for name, reference in ATTACKS.items()}
    used = [one for one in Capability if any(one in some for some in required.values())]
    rows = [
        (f"`{name}`", *("needs" if one in some else "" for one in used))
        for name, some in required.items()
    ]
    return _table(("attack", *(f"`{one}`" for one in used)), rows)


def attack_pages() -> str:
    """Return one line per attack: its page, what it does, and where it comes from."""
    rows = []
    for name, reference in ATTACKS.items():
        attack = load(reference)
        module = inspect.getdoc(inspect.getmodule(attack)) or ""
        what = summary(reference)
        paper = _paper(module)
        rows.append((f"[`{name}`](attacks/{name}.md)", what, paper))
    return _table(("attack", "what it does", "after"), rows)


def defense_pages() -> str:
    """Return one line per defense: its place, its page, what it does, and where it comes from."""
    rows = []
    built = {name: load(reference) for name, reference in DEFENSES.items()}
    for place in Place:
        for name, defense in built.items():
            if defense().place is not place:
                continue
            paper = _paper(inspect.getdoc(inspect.getmodule(defense)) or "")
            what = (inspect.getdoc(defense) or "").partition("\n")[0]
            rows.append((str(place), f"[`{name}`](defenses/{name}.md)", what, paper))
    return _table(("place", "defense", "what it does", "after"), rows)


def topology_facts() -> str:
    """Return what graphs of 16 peers are like, with default settings."""
    rows = []
    for name in TOPOLOGIES:
        if name != "edges":
            gaps = [
                PeerNetwork(name=name, num_peers=16, mixing_name=mixing).facts(1)
                for mixing in MIXINGS
            ]
            facts = gaps[0]
            least, most = facts.min_degree, facts.max_degree
            degree = f"{least}" if least == most else f"{least} to {most}"
            numbers = (degree, f"{facts.num_links}", f"{facts.diameter}")
            rows.append((f"`{name}`", *numbers, *(f"{one.spectral_gap:.4f}" for one in gaps)))
    heads = (f"spectral gap, {mixing}" for mixing in MIXINGS)
    return _table(("graph", "peers that one hears", "links", "diameter", *heads), rows)


def _paper(docstring: str) -> str:
    """Return a link to the first paper that a docstring names, on arXiv if it is there."""
    arxiv = re.search(r"(?:arxiv\.org/abs/|arXiv )(\d{4}\.\d{5})", docstring)
    if arxiv:
        return f"[arXiv {arxiv.group(1)}](https://arxiv.org/abs/{arxiv.group(1)})"
    link = re.search(r"https?://[^\s),]+", docstring)
    return f"[paper]({link.group(0)})" if link else ""


def _names(family: Mapping[str, str]) -> str:
    rows = [
        (f"`{name}`", _one_line((inspect.getdoc(load(reference)) or "").partition("\n")[0]))
        for name, reference in family.items()
    ]
    return _table(("name", "what it is"), rows)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in lines)


def _one_line(text: str) -> str:
    return " ".join(text.split())


PARTS: dict[str, Callable[[], str]] = {
    "sections": sections,
    "data-names": lambda: _names(DATASETS),
    "data-options": lambda: options(DATASETS),
    "model-names": lambda: _names(MODELS),
    "model-options": lambda: options(MODELS),
    "partition-names": lambda: _names(PARTITIONERS),
    "partition-options": lambda: options(PARTITIONERS),
    "attack-pages": attack_pages,
    "attack-names": lambda: _names(ATTACKS),
    "attack-options": lambda: options(ATTACKS),
    "defense-pages": defense_pages,
    "defense-options": lambda: options(DEFENSES),
    "check-names": lambda: _names(load(CHECKS)),
    "check-options": lambda: options(load(CHECKS)),
    "protocol-names": lambda: _names(PROTOCOLS),
    "protocol-options": lambda: options(PROTOCOLS),
    "topology-names": lambda: _names(TOPOLOGIES),
    "topology-options": lambda: options(TOPOLOGIES),
    "topology-facts": topology_facts,
    "capabilities": capabilities,
    "needs": needs,
}
"""What stands in each generated part, by name."""


def generated(page: str) -> str:
    """Return `page` with every generated part made anew."""

    def part(found: re.Match[str]) -> str:
        return f"{found.group(1)}\n{PARTS[found.group('name')]()}\n\n{found.group(3)}"

    return PART.sub(part, page)


def main() -> None:
    """Bring every page up to date."""
    for path in sorted(DOCS.glob("*.md")):
        old = path.read_text()
        new = generated(old)
        if new != old:
            path.write_text(new)


if __name__ == "__main__":
    main()
