"""Sweeps as people write them."""

import re
from pathlib import Path

import pytest

from fedsim.config import shipped
from fedsim.defenses import build_chain
from fedsim.errors import ConfigError
from fedsim.sweep.cells import cells_of
from fedsim.sweep.config import merged, parse_sweep, read_sweep, shipped_sweeps

TEXT = """
name = "small"
seeds = [0, 1]
experiment = "digits-fedavg"
[[axes]]
name = "batch"
key = "training.batch_size"
values = [1, 4]
[attackers]
plain = { name = "idlg" }
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "small.toml"
    path.write_text(text)
    return path


def test_a_base_may_be_shipped_a_file_beside_the_sweep_or_a_table(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('name = "own"\nrounds = 7')

    named = read_sweep(written(tmp_path, TEXT))
    beside = read_sweep(written(tmp_path, TEXT.replace("digits-fedavg", "base.toml")))
    table = TEXT.replace('experiment = "digits-fedavg"', "experiment = { rounds = 8 }")
    inline = read_sweep(written(tmp_path, table))

    assert cells_of(named)[0].experiment.training.algorithm == "fedavg"
    assert cells_of(beside)[0].experiment.rounds == 7
    assert cells_of(inline)[0].experiment.rounds == 8


def test_an_override_is_of_the_sweep_if_the_sweep_has_such_a_key_and_else_of_all_experiments(
    tmp_path: Path,
) -> None:
    sets = ["seeds=[5]", "attackers.plain.time_budget_s=2", "data.root=somewhere", "rounds=50"]

    cells = cells_of(read_sweep(written(tmp_path, TEXT), sets))

    assert [list(cell.leakage) for cell in cells] == [[5], [5]]
    for cell in cells:
        assert cell.experiment.attacks[0].time_budget_s == 2
        assert cell.experiment.data.root == "somewhere"
        assert cell.experiment.rounds == 50


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ('colour = "red"\n' + TEXT, "unknown key 'colour'"),
        (TEXT.replace("seeds = [0, 1]", "seeds = [1, 1]"), "seeds must differ"),
        (TEXT.replace("values = [1, 4]", ""), "key and values come together"),
        (TEXT.replace('plain = { name = "idlg" }', ""), "must name an attack"),
        (TEXT.replace("values = [1, 4]", "values = [4, 4]"), "two are called 'batch 4'"),
        (TEXT.replace("digits-fedavg", "digits-fedavgg"), "did you mean 'digits-fedavg'"),
        (TEXT + "grants = 3", "unknown key 'grants' in [attackers]"),
        (TEXT.replace('"small"', '"a/b"'), "name must fit the pattern"),
    ],
)
def test_what_is_wrong_with_a_sweep_is_said_with_its_place(
    tmp_path: Path, wrong: str, said: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        cells_of(read_sweep(written(tmp_path, wrong)))


def test_a_wrong_key_of_a_level_is_found_before_anything_runs(tmp_path: Path) -> None:
    sweep = read_sweep(written(tmp_path, TEXT.replace("batch_size", "batchsize")))

    with pytest.raises(ConfigError, match="cell 'batch 1': unknown key 'batchsize'"):
        cells_of(sweep)


def test_an_unknown_sweep_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'frontier-digits'"):
        read_sweep("frontier-digit")
    with pytest.raises(ConfigError, match=r"no sweep file 'x\.toml'"):
        read_sweep("x.toml")


def test_nested_and_dotted_keys_mean_the_same_and_options_are_replaced_whole() -> None:
    base = {"model": {"name": "mlp", "options": {"hidden": [4]}}, "rounds": 1}

    dotted = merged(base, {"model.name": "dlg-lenet", "model.options": {}}, where="x")
    nested = merged(base, {"model": {"name": "dlg-lenet", "options": {}}}, where="x")

    assert dotted == nested == {"model": {"name": "dlg-lenet", "options": {}}, "rounds": 1}
    assert base["model"] == {"name": "mlp", "options": {"hidden": [4]}}
    with pytest.raises(ConfigError, match="below a plain value"):
        merged(base, {"rounds.more": 1}, where="x")


@pytest.mark.parametrize("name", sorted(shipped_sweeps()))
def test_every_cell_of_every_shipped_sweep_can_be_built(name: str) -> None:
    cells = cells_of(read_sweep(name))

    assert len(cells) >= 8
    assert all(list(build_chain(cell.experiment)) is not None for cell in cells)
    assert not cells[0].experiment.defenses  # what the others are compared with


def test_shipped_names_are_those_of_their_files() -> None:
    for name in shipped_sweeps():
        sweep = read_sweep(name)
        assert sweep.name == name
        assert sweep.description
        assert sweep.name not in shipped()


def test_a_sweep_must_be_read_before_its_cells_are_made() -> None:
    values = {"name": "x", "experiment": "digits-fedavg", "attackers": {"plain": {"name": "dlg"}}}
    with pytest.raises(ConfigError, match="use read_sweep"):
        cells_of(parse_sweep(values))


def test_the_sweep_on_the_page_is_sound(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "sweeps.md").read_text()
    (example,) = [block for block in page.split("```") if "[attackers]" in block]

    cells = cells_of(read_sweep(written(tmp_path, example)))

    assert [cell.label for cell in cells][-1] == "gaussian 1e-2, batch 4"
    assert cells[-1].experiment.adversary.victims == [0, 1]
