"""Tables, embedded and from files."""

import gzip
import json
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from attacks.tabular.columns import Column, Columns
from fedsim.data import tables
from fedsim.data.load import load_data
from fedsim.data.public import public_sample
from fedsim.data.tables import (
    ADULT,
    TableData,
    adult,
    breast_cancer,
    csv_table,
    decode,
    encode,
    wine,
)
from fedsim.errors import ConfigError, DataMissing, FedsimError

PEOPLE = """\
id,city,age,job,works
1,Rome,20,cook,yes
2,Oslo,30,?,no
3,Rome,40,nurse,yes
4,Oslo,50,cook,no
"""

SCHEMA = """\
label = "works"
classes = ["no", "yes"]
drop = ["id"]

[categories]
city = ["Rome", "Oslo", "Kiev"]
job = []

[numbers]
age = {low = 0, high = 100, whole = true}
"""

LINE = (
    "39, {work}, 77516, Bachelors, 13, Never-married, Adm-clerical, Not-in-family, White, Male, "
    "2174, 0, {hours}, United-States, {income}\n"
)


def people(folder: Path, text: str = PEOPLE, schema: str = SCHEMA) -> Path:
    (folder / "people.csv").write_text(text)
    (folder / "people.toml").write_text(schema)
    return folder


def census(folder: Path, train: str, test: str = LINE) -> Path:
    (folder / "adult").mkdir()
    (folder / "adult" / "adult.data").write_text(train)
    with gzip.open(folder / "adult" / "adult.test.gz", "wt") as stream:
        stream.write("|1x3 Cross validator\n")
        stream.write(test.format(work="Private", hours=40, income=">50K."))
        stream.write("\n")
    return folder


def test_a_row_is_one_hot_categories_and_numbers_as_shares_of_their_range() -> None:
    columns = Columns(
        columns=[
            Column(name="age", low=20, high=60, whole=True),
            Column(name="city", categories=("Rome", "Oslo", "Kiev")),
        ]
    )

    encoded = encode([[30, "Kiev"], ["60", "Rome"]], columns)

    assert encoded.tolist() == [[0.25, 0, 0, 1], [1, 1, 0, 0]]
    assert decode(encoded, columns) == [[30, "Kiev"], [60, "Rome"]]


def test_a_number_outside_its_public_range_is_taken_for_the_nearest_inside() -> None:
    columns = Columns(columns=[Column(name="gain", low=0, high=10)])

    assert encode([[-3], [99]], columns).tolist() == [[0], [1]]


def test_a_guess_between_values_reads_as_its_likeliest_category_and_a_whole_number() -> None:
    columns = Columns(
        columns=[
            Column(name="age", low=0, high=10, whole=True),
            Column(name="city", categories=("Rome", "Oslo")),
            Column(name="share", low=0, high=1),
        ]
    )

    assert decode(torch.tensor([[0.27, 0.4, 0.6, 1.5]]), columns) == [[3, "Oslo", 1.0]]


@pytest.mark.parametrize("value", ["", "?", "nan", "inf", "many"])
def test_what_is_no_number_is_refused(value: str) -> None:
    columns = Columns(columns=[Column(name="age")])

    with pytest.raises(ValueError, match=re.escape(f"age must be a number, got '{value}'")):
        encode([[value]], columns)


@pytest.mark.parametrize(
    ("factory", "rows", "width", "classes"),
    [(breast_cancer, (456, 113), 30, 2), (wine, (143, 35), 13, 3)],
)
def test_embedded_tables_hold_all_rows_in_a_fixed_stratified_split(
    factory: Callable[[], TableData], rows: tuple[int, int], width: int, classes: int
) -> None:
    data = factory()

    assert (len(data.train_inputs), len(data.test_inputs)) == rows
    assert data.input_shape == (width,) == (data.columns.width,)
    assert data.num_classes == classes
    assert data.modality == "table"
    assert data.train_inputs.dtype == torch.float32
    assert 0 <= float(data.train_inputs.min()) < float(data.train_inputs.max()) <= 1
    shares = [
        torch.bincount(part, minlength=classes) / len(part)
        for part in (data.train_labels, data.test_labels)
    ]
    torch.testing.assert_close(*shares, atol=0.02, rtol=0)  # half a row of the smaller split
    assert torch.equal(factory().train_inputs, data.train_inputs)


def test_what_is_decoded_are_the_values_of_the_source() -> None:
    from sklearn.datasets import load_wine

    data = wine()

    source = torch.tensor(load_wine().data)
    found = torch.tensor(decode(data.test_inputs, data.columns), dtype=torch.float64)
    # the published ranges are rounded, so that a few of the extreme values are clipped by 2 %
    ratio = found[:, None] / source
    assert ((ratio - 1).abs() < 0.02).all(dim=2).any(dim=1).all()


def test_adult_is_read_from_its_two_files_plain_or_packed(tmp_path: Path) -> None:
    rows = LINE.format(work="?", hours=40, income="<=50K")

    data = adult(root=census(tmp_path, rows))

    assert data.input_shape == (108,)
    assert data.class_names == ("<=50K", ">50K")
    assert (data.train_labels.tolist(), data.test_labels.tolist()) == ([0], [1])
    (row,) = decode(data.train_inputs, data.columns)
    assert row[:4] == [39, "?", 77516, "Bachelors"]
    assert row[-2:] == [40, "United-States"]


def test_features_of_adult_can_be_left_out(tmp_path: Path) -> None:
    rows = LINE.format(work="Private", hours=40, income="<=50K")

    data = adult(root=census(tmp_path, rows), drop=("fnlwgt", "education"))

    assert data.input_shape == (108 - 1 - 16,)
    assert decode(data.train_inputs, data.columns)[0][:3] == [39, "Private", 13]
    with pytest.raises(ConfigError, match=r"must name features of adult, 'age', .* got 'weight'"):
        adult(root=tmp_path, drop=("weight",))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (LINE.format(work="Pirate", hours=40, income="<=50K"), "workclass must be one of .* got "),
        (LINE.format(work="Private", hours="?", income="<=50K"), "hours-per-week must be a number"),
        (LINE.format(work="Private", hours=40, income="rich"), "the label must be one of '<=50K'"),
        ("1, 2, 3\n", "expected 15 values, got 3"),
    ],
)
def test_a_bad_row_of_adult_is_named_by_file_and_line(
    bad: str, message: str, tmp_path: Path
) -> None:
    good = LINE.format(work="Private", hours=40, income="<=50K")

    with pytest.raises(FedsimError, match=rf"adult\.data, line 2: {message}"):
        adult(root=census(tmp_path, good + bad))


def test_files_of_adult_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"adult: expected adult\.data, adult\.test"):
        adult(root=tmp_path)


def test_adult_is_what_its_authors_describe(real_data: Path) -> None:
    data = adult(root=real_data / "tabular")

    assert (len(data.train_inputs), len(data.test_inputs)) == (32_561, 16_281)
    # adult.names: 23.93 % earn more than 50K
    both = torch.cat((data.train_labels, data.test_labels)).double()
    assert both.mean().item() == pytest.approx(0.2393, abs=5e-5)
    for column, place in ADULT.places():
        part = data.train_inputs[:, place]
        if column.categories:
            assert part.sum(dim=1).eq(1).all()
            assert part.any(dim=0).all(), column.name  # every category occurs
        else:
            assert float(part.min()) == 0, column.name
    first = decode(data.train_inputs[:1], data.columns)[0]
    assert first[:6] == [39, "State-gov", 77516, "Bachelors", 13, "Never-married"]


def test_a_csv_file_is_read_as_its_schema_says(tmp_path: Path) -> None:
    data = csv_table(root=people(tmp_path), file="people.csv", schema="people.toml")

    assert [column.name for column in data.columns.columns] == ["city", "age", "job"]
    assert data.columns.columns[2].categories == ("?", "cook", "nurse")  # those of the file
    assert data.class_names == ("no", "yes")
    rows = decode(torch.cat((data.train_inputs, data.test_inputs)), data.columns)
    assert sorted(map(str, rows)) == [
        "['Oslo', 30, '?']",
        "['Oslo', 50, 'cook']",
        "['Rome', 20, 'cook']",
        "['Rome', 40, 'nurse']",
    ]


def test_a_schema_may_be_json_or_stand_in_the_experiment(tmp_path: Path) -> None:
    table = tomllib.loads(SCHEMA)
    (people(tmp_path) / "people.json").write_text(json.dumps(table))
    expected = csv_table(root=tmp_path, file="people.csv", schema="people.toml")

    for schema in ("people.json", table):
        found = csv_table(root=tmp_path, file="people.csv", schema=schema)
        assert torch.equal(found.train_inputs, expected.train_inputs)
        assert found.columns == expected.columns


def test_a_file_without_names_is_given_them(tmp_path: Path) -> None:
    text = PEOPLE.partition("\n")[2].replace(",", " ")
    schema = 'names = ["id", "city", "age", "job", "works"]\ndelimiter = " "\n' + SCHEMA

    data = csv_table(root=people(tmp_path, text, schema), file="people.csv", schema="people.toml")

    assert len(data.train_inputs) + len(data.test_inputs) == 4


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[numbers]\nage =", "[numbers]\nagee =", "names 'agee', the file has 'id', 'city'"),
        ('drop = ["id"]', "", "does not say what 'id' is; name each in categories, numbers"),
        ("high = 100", "high = -1", r"numbers\.age: .*low must be below high, got 0 and -1"),
        ('drop = ["id"]', 'drop = ["id", "age"]', "named in two places: 'age'"),
        ('label = "works"', "", "label: Field required"),
        ("[numbers]", "[numbers", "expected TOML, or JSON in a .json file"),
        ('drop = ["id"]', f"drop = {'[' * 100_000}", "expected TOML, or JSON in a .json file"),
        ('"Kiev"]', '"Rome"]', "values of city are given twice: 'Rome'"),
        ('"yes"]', '"yes", "no"]', "values of classes are given twice: 'no'"),
    ],
)
def test_a_schema_that_does_not_fit_is_refused_by_name(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    people(tmp_path, schema=SCHEMA.replace(old, new))

    with pytest.raises(ConfigError, match=message):
        csv_table(root=tmp_path, file="people.csv", schema="people.toml")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("2,Oslo", "2,Bern", "people.csv, line 3: city must be one of 'Rome', .* got 'Bern'"),
        ("40", "forty", "people.csv, line 4: age must be a number, got 'forty'"),
        ("cook,no", "cook,perhaps", "people.csv, line 5: the label must be one of 'no', 'yes'"),
        ("3,Rome", "3,Rome,Italy", "people.csv, line 4: expected 5 values, got 6"),
        ("nurse,yes", "nurse,no", "two values or more, each in two rows .* got {'no': 3, 'yes': 1"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    old: str, new: str, message: str, tmp_path: Path
) -> None:
    people(tmp_path, PEOPLE.replace(old, new))

    with pytest.raises(FedsimError, match=message):
        csv_table(root=tmp_path, file="people.csv", schema="people.toml")


def test_what_is_no_text_or_no_packed_one_is_refused_by_file_and_line(tmp_path: Path) -> None:
    people(tmp_path)
    (tmp_path / "people.csv").write_bytes(PEOPLE.replace("Oslo", "Malm\xf6").encode("latin-1"))
    packed = bytearray(gzip.compress(PEOPLE.encode()))
    packed[20] ^= 255
    (tmp_path / "people.csv.gz").write_bytes(packed)

    with pytest.raises(FedsimError, match=r"people\.csv, line 3: expected lines of text"):
        csv_table(root=tmp_path, file="people.csv", schema="people.toml")
    with pytest.raises(FedsimError, match=r"people\.csv\.gz: expected a file packed by gzip"):
        csv_table(root=tmp_path, file="people.csv.gz", schema="people.toml")


def test_a_small_file_that_unpacks_to_too_much_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "MOST_BYTES", 2**20)
    people(tmp_path)
    (tmp_path / "people.csv.gz").write_bytes(gzip.compress(PEOPLE.encode() + b"\n" * 2**20))

    with pytest.raises(FedsimError, match="expected 1 MiB of text at most"):
        csv_table(root=tmp_path, file="people.csv.gz", schema="people.toml")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=r"expected the file '.*nobody\.csv'"):
        csv_table(root=tmp_path, file="nobody.csv", schema="people.toml")


def test_tables_are_found_by_name_with_options_as_experiments_write_them(tmp_path: Path) -> None:
    people(tmp_path)
    options = {"file": "people.csv", "schema": tomllib.loads(SCHEMA), "limit": 1}

    assert load_data("wine", options={"limit": 7}).train_inputs.shape == (7, 13)
    assert load_data("csv", root=str(tmp_path), options=options).train_inputs.shape == (1, 7)


def test_a_schema_in_the_experiment_is_refused_as_one_of_a_file_is(tmp_path: Path) -> None:
    people(tmp_path)
    options = {"file": "people.csv", "schema": tomllib.loads(SCHEMA) | {"label": 3}}

    with pytest.raises(ConfigError, match=r"data\.options\.schema: label: Input should be a valid"):
        load_data("csv", root=str(tmp_path), options=options)


def test_a_category_for_each_person_is_refused_before_memory_is_full(tmp_path: Path) -> None:
    lines = (f"{number},Rome,20,{number},{'yes' if number % 2 else 'no'}" for number in range(5000))
    people(tmp_path, "\n".join(["id,city,age,job,works", *lines]))

    with pytest.raises(ConfigError, match="more than 4096; 'job' has 5000 categories: drop it"):
        csv_table(root=tmp_path, file="people.csv", schema="people.toml")


def test_lines_without_values_are_no_rows(tmp_path: Path) -> None:
    people(tmp_path, PEOPLE.replace("3,Rome", "\n   \n,,,,\n3,Rome"))

    data = csv_table(root=tmp_path, file="people.csv", schema="people.toml")

    assert len(data.train_inputs) + len(data.test_inputs) == 4


def test_a_census_without_rows_is_refused(tmp_path: Path) -> None:
    census(tmp_path, "\n")

    with pytest.raises(FedsimError, match=r"expected rows in adult\.data and adult\.test, got 0"):
        adult(root=tmp_path)


def test_the_public_sample_is_the_whole_test_split_where_that_is_small(
    rng: torch.Generator,
) -> None:
    small, large = wine(), breast_cancer()

    assert len(public_sample(small, None, rng)) == len(small.test_inputs) == 35
    assert len(public_sample(large, None, rng)) == 100
    with pytest.raises(ConfigError, match=r"adversary\.public_sample must be at most 35"):
        public_sample(small, 36, rng)


def test_missing_files_of_adult_are_described_and_nothing_is_offered_that_cannot_be_done(
    tmp_path: Path,
) -> None:
    with pytest.raises(DataMissing, match=r"UCI data set 'Adult'.* 15 values in a line") as refusal:
        adult(root=tmp_path)

    assert "download" not in str(refusal.value)
    assert "'wine'" in str(refusal.value)
