"""Loading by name, and the real data sets where they are."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fedsim.data.load import cache_folder, load_data
from fedsim.errors import ConfigError, DataMissing


@pytest.mark.parametrize(
    ("name", "num_train", "num_test", "input_shape", "num_classes"),
    [
        ("mnist", 24_000, 10_000, (1, 28, 28), 10),
        ("fashion-mnist", 60_000, 10_000, (1, 28, 28), 10),
        ("cifar10", 2_000, 1_000, (3, 32, 32), 10),
        ("cifar100", 1_000, 1_000, (3, 32, 32), 100),
        ("svhn", 800, 200, (3, 32, 32), 10),
        ("lfw", 48, 12, (3, 32, 32), 10),
    ],
)
def test_a_real_data_set_loads_from_the_folder_that_holds_them_all(
    name: str,
    num_train: int,
    num_test: int,
    input_shape: tuple[int, int, int],
    num_classes: int,
    real_data: Path,
) -> None:
    data = load_data(name, root=str(real_data), options={})

    assert (len(data.train_inputs), len(data.test_inputs)) == (num_train, num_test)
    assert len(data.train_labels) == num_train
    assert (data.input_shape, data.num_classes) == (input_shape, num_classes)
    assert [data.train_inputs.min().item(), data.train_inputs.max().item()] == [0, 1]
    assert set(data.train_labels.tolist()) == set(range(num_classes))


def test_the_same_question_is_answered_from_memory() -> None:
    first = load_data("digits", options={"limit": 20})

    assert load_data("digits", options={"limit": 20}) is first
    assert load_data("digits", options={"limit": 21}) is not first


def test_a_reference_of_the_users_own_loads_too() -> None:
    data = load_data("fedsim.data.digits:digits", options={"limit": 20})

    assert torch.equal(data.train_inputs, load_data("digits", options={}).train_inputs[:20])


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, r"unknown data 'digit'; did you mean 'digits'\?"),
        ("digits", {"limit": 0}, "data.options.limit must be greater than or equal to 1, got 0"),
        ("digits", {"root": "."}, "data.options: unknown option 'root'"),
        ("mnist", {"root": "."}, "data.options: unknown option 'root'"),
    ],
)
def test_a_wrong_name_or_option_is_refused(
    name: str, options: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_data(name, options=options)


def test_without_a_root_the_users_cache_folder_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    assert cache_folder() == tmp_path / "fedsim"
    with pytest.raises(DataMissing, match=str(tmp_path / "fedsim")):
        load_data("mnist", options={})


def test_importing_loads_no_data_library() -> None:
    modules = "fedsim.tasks, fedsim.data.partition, fedsim.data.load, fedsim.models.build"
    slow = {"datasets", "flwr_datasets", "sklearn", "skimage", "scipy", "torchvision"}

    code = f"import sys, {modules}; print(sorted(set(sys.modules) & {slow}))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert found.stdout.strip() == "[]"
