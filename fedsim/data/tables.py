"""Tables: labelled rows of categories and numbers, encoded as attacks and models take them.

What encodes a row is public: the categories of a feature and the range of a number stand in the
code, or in the user's schema, and are never read off the rows of clients.
"""

import csv
import gzip
import io
import json
import logging
import math
import tomllib
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor

from attacks.tabular.columns import Column, Columns
from fedsim.data.files import MOST_BYTES, locate
from fedsim.data.images import Array, Limit, split
from fedsim.errors import ConfigError, DataMissing, FedsimError

logger = logging.getLogger(__name__)

MOST_COORDINATES = 4_096
"""Of a row: what has more, such as a category for each person, is hardly a feature."""
Value = str | float
"""A category, or a number."""


@dataclass(frozen=True, kw_only=True, eq=False)
class TableData:
    """Labelled rows, in memory on the CPU.

    Attributes:
        name: As experiments write it.
        train_inputs: Encoded rows, in [0, 1], float32, shape (N, D); what clients hold.
        train_labels: int64, shape (N,).
        test_inputs: Of rows that no client holds, like `train_inputs`.
        test_labels: Like `train_labels`.
        class_names: K names; a label is an index into them.
        columns: What the D coordinates stand for.
    """

    modality: ClassVar[Literal["table"]] = "table"

    name: str
    train_inputs: Tensor
    train_labels: Tensor
    test_inputs: Tensor
    test_labels: Tensor
    class_names: tuple[str, ...]
    columns: Columns

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int]:
        """(D,)."""
        return (self.columns.width,)


def encode(rows: Iterable[Sequence[Value]], columns: Columns) -> Tensor:
    """Return rows as models take them: one-hot categories, numbers as shares of their range.

    A number outside its public range is clipped.

    Args:
        rows: N rows of F values, in the order of `columns`; numbers may be text.
        columns: What to encode them by.

    Returns:
        Shape (N, D), float32, in [0, 1].

    Raises:
        ValueError: A category that is none of the column's, or text that is no number.
    """
    rows = list(rows)
    encoded = np.zeros((len(rows), columns.width), dtype=np.float32)
    for feature, (column, place) in enumerate(columns.places()):
        values = [row[feature] for row in rows]
        if column.categories:
            order = {category: number for number, category in enumerate(column.categories)}
            hot = [_place(column, order, value) for value in values]
            encoded[np.arange(len(rows)), place.start + np.array(hot, dtype=np.int64)] = 1
            continue
        numbers = np.array([_number(column, value) for value in values], dtype=np.float64)
        clipped = numbers.clip(column.low, column.high)
        if outside := int((clipped != numbers).sum()):
            logger.info(
                "%d of %d values of '%s' are outside its public range, %g to %g: clipped",
                outside, len(rows), column.name, column.low, column.high,
            )  # fmt: skip
        encoded[:, place.start] = (clipped - column.low) / (column.high - column.low)
    return torch.from_numpy(encoded)


def decode(encoded: Tensor, columns: Columns) -> list[list[Value]]:
    """Return rows as people read them: of a category its name, of a number its value.

    Args:
        encoded: Shape (N, D); the category is the largest of its coordinates.
        columns: What they were encoded by.
    """
    encoded = encoded.detach().double().cpu()
    of_features: list[list[Value]] = []
    for column, place in columns.places():
        part = encoded[:, place]
        if column.categories:
            of_features.append([column.categories[hot] for hot in part.argmax(dim=1).tolist()])
            continue
        numbers = (column.low + part[:, 0].clamp(0, 1) * (column.high - column.low)).tolist()
        of_features.append(
            [round(one) if column.whole else float(f"{one:.6g}") for one in numbers]
        )  # float32 holds seven digits
    return [list(row) for row in zip(*of_features, strict=True)]


def _place(column: Column, order: Mapping[str, int], value: Value) -> int:
    """Return which of a column's categories a value is.

    Raises:
        ValueError: It is none of them.
    """
    place = order.get(str(value))
    if place is None:
        raise ValueError(f"{column.name} must be one of {_some(column.categories)}, got '{value}'")
    return place


def _number(column: Column, value: Value) -> float:
    """Return a number.

    Raises:
        ValueError: It is none, or not finite.
    """
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{column.name} must be a number, got '{value}'")
    return number


def _some(names: Sequence[str], most: int = 12) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def _numbers(table: str) -> Columns:
    """Return columns of numbers from lines of `name  low  high`."""
    lines = (line.rsplit(maxsplit=2) for line in table.strip().splitlines())
    return Columns(
        columns=[Column(name=name, low=float(low), high=float(high)) for name, low, high in lines]
    )


BREAST_CANCER = _numbers("""
mean radius 6.981 28.11
mean texture 9.71 39.28
mean perimeter 43.79 188.5
mean area 143.5 2501.0
mean smoothness 0.053 0.163
mean compactness 0.019 0.345
mean concavity 0.0 0.427
mean concave points 0.0 0.201
mean symmetry 0.106 0.304
mean fractal dimension 0.05 0.097
radius error 0.112 2.873
texture error 0.36 4.885
perimeter error 0.757 21.98
area error 6.802 542.2
smoothness error 0.002 0.031
compactness error 0.002 0.135
concavity error 0.0 0.396
concave points error 0.0 0.053
symmetry error 0.008 0.079
fractal dimension error 0.001 0.03
worst radius 7.93 36.04
worst texture 12.02 49.54
worst perimeter 50.41 251.2
worst area 185.2 4254.0
worst smoothness 0.071 0.223
worst compactness 0.027 1.058
worst concavity 0.0 1.252
worst concave points 0.0 0.291
worst symmetry 0.156 0.664
worst fractal dimension 0.055 0.208
""")
"""The 30 features, with the ranges that the data set's description publishes."""

WINE = _numbers("""
alcohol 11.0 14.8
malic_acid 0.74 5.80
ash 1.36 3.23
alcalinity_of_ash 10.6 30.0
magnesium 70.0 162.0
total_phenols 0.98 3.88
flavanoids 0.34 5.08
nonflavanoid_phenols 0.13 0.66
proanthocyanins 0.41 3.58
color_intensity 1.3 13.0
hue 0.48 1.71
od280/od315_of_diluted_wines 1.27 4.00
proline 278 1680
""")
"""The 13 features, with the ranges that the data set's description publishes."""


def breast_cancer(*, limit: Limit = None) -> TableData:
    """Breast Cancer Wisconsin (Diagnostic): 30 numbers, 2 classes; embedded.

    569 rows of the UCI data set (Wolberg, Street and Mangasarian, 1993, CC BY 4.0), as scikit-learn
    ships them. The source has no split: a fixed, stratified fifth is the test split.

    Args:
        limit: Keep only so many rows of each split, the first ones.
    """
    from sklearn.datasets import load_breast_cancer

    return _embedded("breast-cancer", load_breast_cancer(), BREAST_CANCER, limit)


def wine(*, limit: Limit = None) -> TableData:
    """Wine recognition: 13 numbers, 3 classes; embedded.

    178 rows of the UCI data set (Aeberhard and Forina, 1992, CC BY 4.0), as scikit-learn ships
    them. The source has no split: a fixed, stratified fifth is the test split.

    Args:
        limit: Keep only so many rows of each split, the first ones.
    """
    from sklearn.datasets import load_wine

    return _embedded("wine", load_wine(), WINE, limit)


def _embedded(name: str, source: object, columns: Columns, limit: int | None) -> TableData:
    rows, labels = (np.asarray(getattr(source, part)) for part in ("data", "target"))
    inputs = encode(rows.tolist(), columns).numpy()
    names = [str(one) for one in getattr(source, "target_names")]  # noqa: B009 - untyped
    train, test = split(inputs, labels)
    return _table(name, train, test, names, columns, limit)


def _table(
    name: str,
    train: tuple[Array, Array],
    test: tuple[Array, Array],
    class_names: Sequence[str],
    columns: Columns,
    limit: int | None,
) -> TableData:
    (train_inputs, train_labels), (test_inputs, test_labels) = (
        (
            torch.from_numpy(np.ascontiguousarray(inputs[:limit])),
            torch.tensor(labels[:limit], dtype=torch.int64),
        )
        for inputs, labels in (train, test)
    )
    return TableData(
        name=name,
        train_inputs=train_inputs,
        train_labels=train_labels,
        test_inputs=test_inputs,
        test_labels=test_labels,
        class_names=tuple(class_names),
        columns=columns,
    )


_UNKNOWN = "?"
"""What Adult writes where the answer is not known: a category of its own."""


def _listed(name: str, categories: str) -> Column:
    return Column(name=name, categories=tuple(categories.split()))


def _whole(name: str, low: float, high: float) -> Column:
    return Column(name=name, low=low, high=high, whole=True)


ADULT = Columns(
    columns=[
        _whole("age", 17, 90),
        _listed(
            "workclass",
            "Private Self-emp-not-inc Self-emp-inc Federal-gov Local-gov State-gov Without-pay "
            "Never-worked ?",
        ),
        _whole("fnlwgt", 12_285, 1_490_400),
        _listed(
            "education",
            "Bachelors Some-college 11th HS-grad Prof-school Assoc-acdm Assoc-voc 9th 7th-8th 12th "
            "Masters 1st-4th 10th Doctorate 5th-6th Preschool",
        ),
        _whole("education-num", 1, 16),
        _listed(
            "marital-status",
            "Married-civ-spouse Divorced Never-married Separated Widowed Married-spouse-absent "
            "Married-AF-spouse",
        ),
        _listed(
            "occupation",
            "Tech-support Craft-repair Other-service Sales Exec-managerial Prof-specialty "
            "Handlers-cleaners Machine-op-inspct Adm-clerical Farming-fishing Transport-moving "
            "Priv-house-serv Protective-serv Armed-Forces ?",
        ),
        _listed("relationship", "Wife Own-child Husband Not-in-family Other-relative Unmarried"),
        _listed("race", "White Asian-Pac-Islander Amer-Indian-Eskimo Other Black"),
        _listed("sex", "Female Male"),
        _whole("capital-gain", 0, 99_999),
        _whole("capital-loss", 0, 4_356),
        _whole("hours-per-week", 1, 99),
        _listed(
            "native-country",
            "United-States Cambodia England Puerto-Rico Canada Germany "
            "Outlying-US(Guam-USVI-etc) India Japan Greece South China Cuba Iran Honduras "
            "Philippines Italy Poland Jamaica Vietnam Mexico Portugal Ireland France "
            "Dominican-Republic Laos Ecuador Taiwan Haiti Columbia Hungary Guatemala Nicaragua "
            "Scotland Thailand Yugoslavia El-Salvador Trinadad&Tobago Peru Hong "
            "Holand-Netherlands ?",
        ),
    ]
)
"""The 14 features: categories as `adult.names` lists them and "?" where files have it; numbers from
the lowest to the highest of the published files, which for most is where the census caps them."""

ADULT_CLASSES = ("<=50K", ">50K")


def adult(*, root: Path, drop: tuple[str, ...] = (), limit: Limit = None) -> TableData:
    """Adult (census income): 6 numbers, 8 categories, 2 classes (Becker and Kohavi, 1996).

    Rows with an unknown value are kept: "?" is a category of its own. The source is split.

    Args:
        root: Holds `adult/adult.data` and `adult/adult.test`, or these files, plain or as `.gz`.
        drop: Features to leave out; "fnlwgt" is a sampling weight that says little of a person.
        limit: Keep only so many rows of each split, the first ones.

    Raises:
        DataMissing: The files are not there.
        ConfigError: There is no such feature to leave out.
        FedsimError: A row that is not one of Adult; the message says file and line.
    """
    folder = locate(
        "adult",
        root,
        ["adult.data", "adult.test"],
        endings=("", ".gz"),
        otherwise=(
            "try tables that need no files, such as 'wine'. They are the files of the UCI data set "
            "'Adult', plain or as .gz: 15 values in a line with commas between them, '?' for an "
            "unknown one, and no line of names"
        ),
    )
    names = [column.name for column in ADULT.columns]
    for name in drop:
        if name not in names:
            raise ConfigError(
                f"data.options.drop must name features of adult, {_some(names, 20)}, got '{name}'"
            )
    kept = [place for place, name in enumerate(names) if name not in drop]
    columns = Columns(columns=[ADULT.columns[place] for place in kept])
    if not kept:
        raise ConfigError("data.options.drop must leave features of adult, got all of them")

    def read(file: str) -> tuple[Array, Array]:
        path = next(p for p in (folder / file, folder / f"{file}.gz") if p.is_file())
        lines = list(_lines(path, ",", comment="|"))
        rows, labels = [], []
        for number, cells in lines:
            if len(cells) != len(names) + 1:
                raise FedsimError(
                    f"{path}, line {number}: expected {len(names) + 1} values, got {len(cells)}"
                )
            rows.append((number, [cells[place] for place in kept]))
            labels.append((number, cells[-1].rstrip(".")))
        return _read_rows(path, rows, columns), _read_labels(path, labels, ADULT_CLASSES)

    train, test = read("adult.data"), read("adult.test")
    if not len(train[1]) or not len(test[1]):
        raise FedsimError(
            f"{folder}: expected rows in adult.data and adult.test, got {len(train[1])} and "
            f"{len(test[1])}"
        )
    return _table("adult", train, test, ADULT_CLASSES, columns, limit)


class Range(BaseModel):
    """The public range of a number."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    low: float
    """The lowest value; what is below is taken for it."""
    high: float
    """The highest value; what is above is taken for it."""
    whole: bool = False
    """Whether it is a whole number."""

    @model_validator(mode="after")
    def _in_order(self) -> "Range":
        if not self.low < self.high:
            raise ValueError(f"low must be below high, got {self.low:g} and {self.high:g}")
        return self


class TableSchema(BaseModel):
    """What the columns of a CSV file are; every one is named in exactly one place."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str
    """The column that is the label."""
    classes: tuple[str, ...] = ()
    """Its values, in order; empty takes those of the file, sorted."""
    categories: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Columns of categories, with their values in order; none given takes those of the file."""
    numbers: dict[str, Range] = Field(default_factory=dict)
    """Columns of numbers, with their public range."""
    drop: tuple[str, ...] = ()
    """Columns to leave out."""
    names: tuple[str, ...] = ()
    """Names of the columns of a file without a first line of names."""
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] = ","
    """What is between two values."""

    @model_validator(mode="after")
    def _named_once(self) -> "TableSchema":
        named = [self.label, *self.categories, *self.numbers, *self.drop]
        if twice := sorted({name for name in named if named.count(name) > 1}):
            raise ValueError(f"columns are named in two places: {_some(twice)}")
        for name, values in [*self.categories.items(), ("classes", self.classes)]:
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"values of {name} are given twice: {_some(twice)}")
        if not self.categories and not self.numbers:
            raise ValueError("there must be a column of categories or of numbers")
        return self


def csv_table(
    *, root: Path, file: str, schema: str | dict[str, object], limit: Limit = None
) -> TableData:
    """Any CSV file, with a schema that says what its columns are.

    Features are in the order of the file. A fixed, stratified fifth is the test split. What the
    schema does not list, the categories of a column, is taken from the whole file: an adversary
    that is granted the input's domain then knows them.

    Args:
        root: The folder of data sets.
        file: The CSV file, plain or `.gz`, below `root` or an absolute path; its first line names
            the columns, unless the schema does.
        schema: What its columns are: a TOML or JSON file, found likewise, or the table itself.
        limit: Keep only so many rows of each split, the first ones.

    Raises:
        DataMissing: The file, or that of the schema, is not there.
        ConfigError: The schema is not one, or not one of this file, or makes rows of more than
            `MOST_COORDINATES`.
        FedsimError: A value that the schema does not allow; the message says file and line.
    """
    path = _present(root / Path(file).expanduser())
    wanted = _schema(schema, root)
    lines = list(_lines(path, wanted.delimiter))
    names = list(wanted.names) if wanted.names else (lines.pop(0)[1] if lines else [])
    _check_names(path, names, wanted)
    if not lines:
        raise FedsimError(f"{path}: expected rows, got none")
    for number, cells in lines:
        if len(cells) != len(names):
            raise FedsimError(
                f"{path}, line {number}: expected {len(names)} values, got {len(cells)}"
            )
    kept = [
        place for place, name in enumerate(names) if name in {*wanted.categories, *wanted.numbers}
    ]

    def column(place: int) -> Column:
        name = names[place]
        if name in wanted.numbers:
            return Column(name=name, **wanted.numbers[name].model_dump())
        found = wanted.categories[name] or sorted({cells[place] for _, cells in lines})
        return Column(name=name, categories=tuple(found))

    columns = Columns(columns=[column(place) for place in kept])
    if columns.width > MOST_COORDINATES:
        widest = max(columns.columns, key=lambda one: one.width)
        raise ConfigError(
            f"{path}: rows have {columns.width} coordinates, more than {MOST_COORDINATES}; "
            f"'{widest.name}' has {widest.width} categories: drop it, or make it a number"
        )
    inputs = _read_rows(path, [(n, [cells[p] for p in kept]) for n, cells in lines], columns)
    told = [(number, cells[names.index(wanted.label)]) for number, cells in lines]
    classes = wanted.classes or tuple(sorted({label for _, label in told}))
    labels = _read_labels(path, told, classes)
    counts = np.bincount(labels, minlength=len(classes))
    if len(classes) < 2 or counts[counts > 0].min() < 2:
        raise FedsimError(
            f"{path}: '{wanted.label}' must have two values or more, each in two rows at least, "
            f"got {dict(zip(classes, counts.tolist(), strict=True))}"
        )
    train, test = split(inputs, labels)
    return _table(path.name, train, test, classes, columns, limit)


def _present(path: Path) -> Path:
    if not path.is_file():
        raise DataMissing(
            f"expected the file '{path}'; place it there, or set data.root to the folder it is in"
        )
    return path


def _schema(schema: str | dict[str, object], root: Path) -> TableSchema:
    """Return a schema, or that of a file.

    Raises:
        ConfigError: It is none.
    """
    source = "data.options.schema"
    try:
        if isinstance(schema, str):
            path = _present(root / Path(schema).expanduser())
            source, text = str(path), path.read_text(encoding="utf-8-sig")
            schema = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
        return TableSchema.model_validate(schema)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}: {where + ': ' if where else ''}{first['msg']}") from error
    # what both parsers raise, bytes that are no UTF-8, and what is nested deeper than they go
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{source}: expected TOML, or JSON in a .json file: {error}") from error


def _check_names(path: Path, names: Sequence[str], schema: TableSchema) -> None:
    """Refuse a schema that is not one of this file.

    Raises:
        ConfigError: A column is in one of the two alone.
    """
    named = [schema.label, *schema.categories, *schema.numbers, *schema.drop]
    if missing := [name for name in named if name not in names]:
        raise ConfigError(
            f"{path}: the schema names {_some(missing)}, the file has {_some(names, 20)}"
        )
    if unnamed := [name for name in names if name not in named]:
        raise ConfigError(
            f"{path}: the schema does not say what {_some(unnamed)} is; name each in categories, "
            "numbers or drop"
        )
    if len(set(names)) != len(names):
        raise ConfigError(f"{path}: two columns have the same name, got {_some(names, 20)}")


def _lines(path: Path, delimiter: str, comment: str = "") -> Iterator[tuple[int, list[str]]]:
    """Yield the number of each line that is not empty, and its values.

    Raises:
        FedsimError: It is no text.
    """
    reader = csv.reader(
        io.StringIO(_text(path), newline=""), delimiter=delimiter, skipinitialspace=True
    )
    try:
        for cells in reader:
            if any(cells) and not (comment and cells[0].startswith(comment)):
                yield reader.line_num, [cell.strip() for cell in cells]
    except csv.Error as error:
        line = reader.line_num + 1
        raise FedsimError(f"{path}, line {line}: expected lines of text, got {error}") from error


def _text(path: Path) -> str:
    """Return what is in a file, plain or `.gz`.

    Raises:
        FedsimError: It is no text, or more than `MOST_BYTES`.
    """
    data = b""
    try:
        with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as stream:
            data = stream.read(MOST_BYTES + 1)
        if len(data) <= MOST_BYTES:
            return data.decode("utf-8-sig")
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise FedsimError(f"{path}: expected a file packed by gzip, got {error}") from error
    except UnicodeDecodeError as error:
        line = 1 + data.count(b"\n", 0, error.start)
        raise FedsimError(f"{path}, line {line}: expected lines of text, got {error}") from error
    raise FedsimError(f"{path}: expected {MOST_BYTES >> 20} MiB of text at most; cut it into parts")


def _read_rows(path: Path, rows: Sequence[tuple[int, list[str]]], columns: Columns) -> Array:
    """Encode the rows of a file.

    Raises:
        FedsimError: A value that its column does not allow; the message says file and line.
    """
    try:
        return encode([cells for _, cells in rows], columns).numpy()
    except ValueError:
        for number, cells in rows:  # which one was it?
            try:
                encode([cells], columns)
            except ValueError as error:
                raise FedsimError(f"{path}, line {number}: {error}") from error
        raise


def _read_labels(
    path: Path, labels: Sequence[tuple[int, str]], class_names: Sequence[str]
) -> Array:
    """Return the labels of a file as numbers of classes.

    Raises:
        FedsimError: A label that is no class.
    """
    numbers = {name: number for number, name in enumerate(class_names)}
    for line, label in labels:
        if label not in numbers:
            raise FedsimError(
                f"{path}, line {line}: the label must be one of {_some(class_names)}, got '{label}'"
            )
    return np.array([numbers[label] for _, label in labels], dtype=np.int64)
