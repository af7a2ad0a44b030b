"""From a sweep to the experiments that measure it."""

from typing import Any

import pytest

from fedsim.errors import ConfigError
from fedsim.sweep.cells import cells_of, jobs_of
from fedsim.sweep.config import parse_sweep


def sweep_of(**more: Any) -> Any:
    noise = [{"name": "gaussian-noise"}]
    levels = [{"label": "none"}, {"label": "noise", "set": {"defenses": noise}}]
    values = {
        "name": "small",
        "seeds": [0, 1],
        "experiment": {"model": {"name": "mlp"}, "data": {"name": "digits", "root": "here"}},
        "axes": [{"name": "defense", "levels": levels}],
        "attackers": {"plain": {"name": "dlg"}, "auto": {"name": "auto"}},
    }
    return parse_sweep(values | more)


def test_the_grid_is_the_product_of_the_axes_and_further_cells_come_last() -> None:
    batches = {"name": "batch", "key": "training.batch_size", "values": [1, 2]}
    axes = [sweep_of().axes[0].model_dump(), batches]
    extra = [{"label": "both", "set": {"rounds": 3}}]

    cells = cells_of(sweep_of(axes=axes, cells=extra))

    assert [cell.label for cell in cells] == [
        *("none, batch 1", "none, batch 2", "noise, batch 1", "noise, batch 2"),
        "both",
    ]
    assert [cell.number for cell in cells] == [1, 2, 3, 4, 5]
    assert cells[3].levels == {"defense": "noise", "batch": "batch 2"}
    assert cells[3].experiment.training.batch_size == 2
    assert cells[4].experiment.rounds == 3
    assert [cell.family for cell in cells] == ["none", "none"] + ["gaussian-noise"] * 2 + ["none"]


def test_defenses_of_several_axes_are_chained_in_order() -> None:
    clip = {"label": "clip", "set": {"defenses": [{"name": "clip"}]}}
    noise = {"label": "noise", "set": {"defenses": [{"name": "gaussian-noise"}]}}
    axes = [{"name": "first", "levels": [clip]}, {"name": "then", "levels": [noise]}]

    cell = cells_of(sweep_of(axes=axes))[0]

    assert cell.defense == "clip + gaussian-noise"


def test_all_attackers_hear_one_run_that_grants_the_defense() -> None:
    experiment = cells_of(sweep_of())[1].experiment

    assert [(one.title, one.name) for one in experiment.attacks] == [
        ("plain", "dlg"),
        ("auto", "auto"),
    ]
    assert "defense" in experiment.adversary.grants


def test_a_plain_attacker_alone_is_granted_nothing() -> None:
    experiment = cells_of(sweep_of(attackers={"plain": {"name": "dlg"}}))[1].experiment

    assert not experiment.adversary.grants


def test_utility_is_that_of_the_attacked_run_unless_it_has_a_training_of_its_own() -> None:
    shared = cells_of(sweep_of())
    own = cells_of(
        sweep_of(utility={"set": {"rounds": 50, "model.name": "dlg-lenet"}}),
    )

    assert shared[0].utility == shared[0].leakage
    assert len(jobs_of(shared)) == 4
    assert len(jobs_of(own)) == 8
    trained = own[1].utility[0].experiment
    assert (trained.rounds, trained.model.name, trained.attacks) == (50, "dlg-lenet", [])
    assert trained.adversary.victims == []
    assert trained.defense_title == "gaussian-noise"
    assert own[1].leakage == shared[1].leakage


def test_what_a_cell_sets_wins_over_the_utility_training_and_its_own_utility_keys_over_both() -> (
    None
):
    cells = [
        {"label": "a", "set": {"training.batch_size": 4}},
        {"label": "b", "set": {"training.batch_size": 4}, "utility": {"training.batch_size": 2}},
    ]
    made = cells_of(
        sweep_of(axes=[], cells=cells, utility={"set": {"training": {"batch_size": 32}}})
    )

    sizes = [cell.utility[0].experiment.training.batch_size for cell in made]
    assert sizes == [4, 2]
    assert [cell.experiment.training.batch_size for cell in made] == [4, 4]


def test_cells_that_train_alike_share_the_run_that_measures_utility() -> None:
    cells = [
        {"label": f"told {told}", "set": {"adversary.told_defense": told}}
        for told in ("settings", "names")
    ]

    made = cells_of(sweep_of(axes=[], cells=cells, utility={}))

    assert made[0].utility == made[1].utility
    assert made[0].leakage != made[1].leakage
    assert len(jobs_of(made)) == 6


def test_a_job_is_known_by_its_experiment_wherever_data_and_records_lie() -> None:
    here = jobs_of(cells_of(sweep_of()))
    there = jobs_of(cells_of(sweep_of(set={"data.root": "there", "output.directory": "else"})))
    other = jobs_of(cells_of(sweep_of(set={"rounds": 3})))

    assert [job.digest for job in here] == [job.digest for job in there]
    assert not {job.digest for job in here} & {job.digest for job in other}


def test_jobs_go_seed_by_seed_so_that_early_results_cover_all_cells() -> None:
    jobs = jobs_of(cells_of(sweep_of()))

    assert [job.experiment.seed for job in jobs] == [0, 0, 1, 1]


def test_two_cells_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="two cells are called 'none'"):
        cells_of(sweep_of(cells=[{"label": "none"}]))


def test_leakage_and_utility_are_measured_under_the_same_noise() -> None:
    private = [{"name": "dp-sgd", "options": {"epsilon": 3.0}}]
    axes = [{"name": "defense", "levels": [{"label": "dp", "set": {"defenses": private}}]}]
    utility = {"set": {"rounds": 50}}

    with pytest.raises(ConfigError, match=r"cell 'dp'.*noise_multiplier in its place"):
        cells_of(sweep_of(axes=axes, utility=utility))
    cells_of(sweep_of(axes=axes))  # one run has one noise
    private[0]["options"] = {"noise_multiplier": 1.0}
    cells_of(sweep_of(axes=axes, utility=utility))
