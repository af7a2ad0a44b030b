"""The rows of a sweep for people and programs."""

import io

from fedsim.report.wording import NOTHING
from fedsim.schemas.course import Environment
from fedsim.schemas.statistics import Interval
from fedsim.schemas.sweep import AttackerRow, PublishedRow, SweepCell, SweepRecord
from fedsim.sweep.tables import markdown, psnr_of, published_of

ATTACKED = AttackerRow(
    attack="dlg",
    time_budget_s=1.0,
    victims=2,
    num_images=2,
    psnr_db=Interval(value=12.345, low=11.0, high=13.0),
    data_mean_psnr_db=11.5,
)
ROW = SweepCell(
    number=1,
    label="a | b",
    family="none",
    levels={"defense": "a"},
    defense="none",
    status="done",
    seeds=[0, 1],
    accuracy=Interval(value=0.5),
    accuracy_std=0.01,
    attackers={"plain": ATTACKED},
    published=PublishedRow(accuracy=0.01, below=True, defends=True),
)


def record(*cells: SweepCell) -> SweepRecord:
    return SweepRecord(
        name="x",
        description="",
        status="done",
        confidence=0.95,
        success_threshold_db=20.0,
        own_utility=False,
        utility_note="",
        environment=Environment(
            format=1,
            fedsim="0",
            python="3",
            packages={},
            platform="Linux",
            cpu_count=2,
            gpu=None,
            started="2026",
        ),
        seconds=1.0,
        cells=list(cells),
        seeds=[],
    )


def test_the_markdown_table_has_a_row_per_cell_and_the_published_columns_beside_ours() -> None:
    lines = markdown(record(ROW)).replace("\u00a0", " ").splitlines()

    assert len(lines) == 3
    assert lines[2] == (
        "| 1 | a / b | 50.0 ± 1.0 % | 12.3 (11.0 to 13.0) | 0 of 2 | 11.5 dB | at most 1 % | yes | "
        "not broken by plain |"
    )
    assert len({line.count("|") for line in lines}) == 1


def test_without_published_values_and_epsilon_their_columns_are_left_out() -> None:
    plain = ROW.model_copy(update={"published": PublishedRow()})
    private = plain.model_copy(update={"epsilon": 2.5})

    assert "published" not in markdown(record(plain))
    assert "epsilon" not in markdown(record(plain))
    assert "| 2.5 |" in markdown(record(plain, private))


def test_an_attacker_that_cannot_attack_is_not_shown_as_a_number() -> None:
    assert psnr_of(ATTACKED.model_copy(update={"refused": "no"})) == "cannot attack"
    assert psnr_of(AttackerRow(attack="dlg", time_budget_s=1.0)) == NOTHING


def test_our_verdict_beside_a_published_one_is_worded_by_what_was_measured() -> None:
    broken = ATTACKED.model_copy(update={"num_recovered": 1})
    unknown = ATTACKED.model_copy(update={"num_images": 0})

    verdicts = [
        published_of(ROW.model_copy(update={"attackers": {"plain": one}}))[2]
        for one in (ATTACKED, broken, unknown)
    ]
    assert verdicts == ["not broken by plain", "no", NOTHING]


def test_our_verdict_is_on_the_attack_of_the_paper_where_that_was_run() -> None:
    broken = ATTACKED.model_copy(update={"num_recovered": 1})
    attackers = {"original": ATTACKED, "plain": broken}

    assert published_of(ROW.model_copy(update={"attackers": attackers}))[2] == (
        "not broken by original"
    )


def test_columns_of_both_files_are_the_same_where_a_value_is_missing_in_some_rows() -> None:
    import csv

    from fedsim.sweep.tables import _csv, _flat, _parquet

    failed = ROW.model_copy(
        update={
            "accuracy": None,
            "attackers": {"plain": AttackerRow(attack="dlg", time_budget_s=1.0)},
            "status": "failed",
        }
    )
    rows = [_flat(one.model_dump(mode="json")) for one in (ROW, failed)]

    import pyarrow.parquet as pq

    table = pq.read_table(io.BytesIO(_parquet(rows)))
    lines = list(csv.DictReader(io.StringIO(_csv(rows).decode())))

    assert table.column_names == list(lines[0])
    assert "accuracy" not in table.column_names
    assert table.column("accuracy.value").to_pylist() == [0.5, None]
    assert lines[1]["plain.psnr_db.value"] == ""
