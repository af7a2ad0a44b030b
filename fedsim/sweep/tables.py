"""The rows of a sweep as CSV, Parquet and Markdown."""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsim.files import Record, replace_bytes
from fedsim.quality import SCALES, measured
from fedsim.report.wording import NOTHING, percent, share, size
from fedsim.schemas.document import Modality
from fedsim.schemas.statistics import Interval
from fedsim.schemas.sweep import AttackerRow, SweepCell, SweepPart, SweepReach, SweepRecord

OF_IMAGES = {"psnr_db", "psnr_std_db", "best_psnr_db", "ssim", "data_mean_psnr_db"}
OF_OTHERS = {"modality", "accuracy", "accuracy_std", "best_accuracy", "data_mean_accuracy"}
"""What tables leave out of a part whose examples are of the other kind: it has no value there."""


def write_tables(folder: Path, record: SweepRecord) -> None:
    """Write `rows` (a row per cell) and `seeds` (per cell and seed) as CSV and as Parquet."""
    document = record.model_dump(mode="json")
    for name, part in (("rows", "cells"), ("seeds", "seeds")):
        rows = [_flat(row) for row in document[part]]
        replace_bytes(folder / f"{name}.csv", _csv(rows))
        replace_bytes(folder / f"{name}.parquet", _parquet(rows))


def _flat(row: Mapping[str, Any]) -> Record:
    """Return a row whose columns have plain values, as `plain.psnr_db.low`."""
    return dict(_leaves(row))


def _leaves(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    foreign: set[str] = set()
    if "modality" in row:
        foreign = OF_OTHERS if row["modality"] == "image" else OF_IMAGES
    for key, value in row.items():
        if key in foreign:
            continue
        # roles and axes have names of their own
        name = prefix if key in ("attackers", "levels") else f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{name}." if name and not name.endswith(".") else name)
        elif isinstance(value, list):
            yield name, " ".join(map(str, value))
        else:
            yield name, value


def _columns(rows: Sequence[Record]) -> list[str]:
    names = list(dict.fromkeys(name for row in rows for name in row))
    # an interval that is missing in one row is a table in another
    return [name for name in names if not any(other.startswith(f"{name}.") for other in names)]


def _csv(rows: Sequence[Record]) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, _columns(rows), extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def _parquet(rows: Sequence[Record]) -> bytes:
    import pyarrow as pa  # late: it takes a while
    from pyarrow import parquet

    columns = _columns(rows)
    values = {name: [row.get(name) for row in rows] for name in columns}
    table = pa.table({name: pa.array(found, _type(found)) for name, found in values.items()})
    file = io.BytesIO()
    parquet.write_table(table, file)
    return file.getvalue()


def _type(values: Sequence[object]) -> Any:
    """Return the column type: numbers are float64 unless all are whole, so that files agree."""
    import pyarrow as pa

    known = [value for value in values if value is not None]
    if known and all(isinstance(value, bool) for value in known):
        return pa.bool_()
    if any(isinstance(value, str) for value in known):
        return pa.string()
    if known and all(isinstance(value, int) for value in known):
        return pa.int64()
    return pa.float64()


# for documents


def markdown(record: SweepRecord) -> str:
    """Return the table of a sweep for a document, a row per cell; over adversaries, three."""
    if record.compares == "adversaries":
        return _who_sees_what(record)
    roles = list(record.cells[0].attackers)
    published = any(
        row.published.accuracy is not None or row.published.defends is not None
        for row in record.cells
    )
    private = any(row.epsilon is not None for row in record.cells)
    kinds = modalities(record.cells)
    unit = f", {SCALES[kinds[0]].unit}" if len(kinds) == 1 else ""
    head = ["", "cell", "accuracy", *(f"{role}{unit}" for role in roles)]
    head += [f"{role}, recovered" for role in roles] + ["data mean"]
    head += ["epsilon"] if private else []
    head += ["published accuracy", "published: defends", "ours: defends"] if published else []
    lines = []
    for row in record.cells:
        line = [str(row.number), row.label, accuracy_of(row)]
        line += [psnr_of(row.attackers[role]) + _unit(row.attackers[role], kinds) for role in roles]
        line += [recovered_of(row.attackers[role]) for role in roles]
        line.append(data_mean_of(row))
        line += [NOTHING if row.epsilon is None else f"{row.epsilon:.3g}"] if private else []
        line += published_of(row) if published else []
        lines.append(line)
    return _table(head, lines)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(cell.replace('|', '/') for cell in row)} |\n" for row in rows)


def _who_sees_what(record: SweepRecord) -> str:
    """Return what each adversary got in all, by round, and by distance: three tables."""
    found = [row.reach for row in record.cells if row.reach is not None]
    rounds = sorted({key for one in found for key in one.rounds}, key=int)
    away = sorted({key for one in found for key in one.distances}, key=int)
    head = ["", "setting", "updates got hold of", "error", "recovered", "median"]
    head += ["accuracy", "worst to best peer", "consensus distance", "sent per round"]
    whole, by_round, by_distance = [], [], []
    for row in record.cells:
        name = [str(row.number), row.label]
        one = row.reach
        if one is None:
            whole.append([*name, row.status, *[""] * (len(head) - 3)])
            continue
        whole.append([*name, *_reached(row, one)])
        by_round.append([*name, *(_part(one.rounds.get(key)) for key in rounds)])
        by_distance.append([*name, *(_part(one.distances.get(key)) for key in away)])
    links = [f"{key} link{'s' * (key != '1')}" for key in away]
    tables = [
        _table(head, whole),
        _table(["", "setting", *(f"round {key}" for key in rounds)], by_round),
        _table(["", "setting", *links], by_distance),
    ]
    return "\n".join(tables)


def _reached(row: SweepCell, one: SweepReach) -> list[str]:
    ways = [f"{number} {how}" for how, number in one.whole.isolated.items()]
    peers, apart = NOTHING, one.consensus_distance
    if one.worst_peer is not None:
        peers = f"{percent(one.worst_peer)} to {percent(one.best_peer)}"
    return [
        ", ".join(ways) or "none",
        share(one.update_error),
        f"{one.whole.num_recovered} of {one.whole.num_images}",
        SCALES[one.whole.modality].written(measured(one.whole)),
        accuracy_of(row),
        peers,
        NOTHING if apart is None else f"{apart:.2g}",
        size(one.bytes_sent),
    ]


def _part(one: SweepPart | None) -> str:
    """Return how many examples were recovered, and the median likeness of guessed ones."""
    if one is None:
        return NOTHING
    middle = measured(one)
    how_well = "" if middle is None else f", {SCALES[one.modality].written(middle)}"
    return f"{one.num_recovered} of {one.num_images}{how_well}"


def accuracy_of(row: SweepCell) -> str:
    """Return the accuracy with its spread over seeds."""
    if row.status == "failed":
        return "failed"
    if row.accuracy is None:
        return NOTHING
    spread = "" if row.accuracy_std is None else f" ± {100 * row.accuracy_std:.1f}"
    return f"{100 * row.accuracy.value:.1f}{spread}\u00a0%"


def psnr_of(one: AttackerRow) -> str:
    """Return the median PSNR, or accuracy in percent, with its interval."""
    if one.refused is not None:
        return "cannot attack"
    found, factor = measured(one), SCALES[one.modality].factor
    return NOTHING if found is None else f"{factor * found.value:.1f}{_range(found, factor)}"


def _range(interval: Interval, factor: float) -> str:
    if interval.low is None or interval.high is None:
        return ""
    return f" ({factor * interval.low:.1f} to {factor * interval.high:.1f})"


def _unit(one: AttackerRow, kinds: Sequence[Modality]) -> str:
    """Return the unit that a cell of the table needs, where its head has none."""
    return f" {SCALES[one.modality].unit}" if len(kinds) > 1 and measured(one) is not None else ""


def modalities(cells: Sequence[SweepCell]) -> list[Modality]:
    """Return what private examples of a sweep are, each once; images where nothing was scored."""
    rows = [one for row in cells for one in row.attackers.values() if one.num_images]
    return list(dict.fromkeys(one.modality for one in rows)) or ["image"]


def recovered_of(one: AttackerRow) -> str:
    """Return how many examples were recovered."""
    return f"{one.num_recovered} of {one.num_images}" if one.num_images else NOTHING


def published_of(row: SweepCell) -> list[str]:
    """Return what a paper reports, and our verdict on its attack, or the plain one, beside it."""
    said = row.published
    accuracy = percent(said.accuracy) if said.accuracy is not None else NOTHING
    role = "original" if "original" in row.attackers else "plain"
    attacker = row.attackers.get(role)
    ours = NOTHING
    if attacker is not None and attacker.num_images:
        ours = "no" if attacker.num_recovered else f"not broken by {role}"
    verdict = NOTHING if said.defends is None else "yes" if said.defends else "no"
    return [("at most " if said.below else "") + accuracy, verdict, ours]


def data_mean(row: SweepCell) -> tuple[Modality, float | None]:
    """Return what the examples of a cell are, and how close guessing the data mean comes."""
    for one in row.attackers.values():
        found = one.data_mean_psnr_db if one.modality == "image" else one.data_mean_accuracy
        if found is not None:
            return one.modality, found
    return "image", None


def data_mean_of(row: SweepCell) -> str:
    """Return how close guessing the data mean comes, with its unit."""
    modality, found = data_mean(row)
    return SCALES[modality].written(found)
