"""Image data sets of the Hugging Face hub; the hub itself is played by data in memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from fedsim.data.corpora import hugging_face_text
from fedsim.data.hugging_face import hugging_face
from fedsim.errors import ConfigError, DataMissing

Hub = Callable[[dict[str, Any] | Exception], None]
NAMES = ["cat", "dog"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Lets the hub answer with the given splits, or fail with the given error."""

    def answer(content: dict[str, Any] | Exception) -> None:
        def load_dataset(*args: object, **options: object) -> dict[str, Any]:
            if isinstance(content, Exception):
                raise content
            return content

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return answer


def part(sizes: list[tuple[int, int]], mode: str = "RGB", label: object = None) -> Any:
    features = {"picture": datasets.Image(), "kind": label or datasets.ClassLabel(names=NAMES)}
    values = [np.full((*size, 3), 10 * number, np.uint8) for number, size in enumerate(sizes)]
    return datasets.Dataset.from_dict(
        {
            "picture": [Image.fromarray(value).convert(mode) for value in values],
            "kind": [number % 2 for number in range(len(sizes))],
        },
        features=datasets.Features(features),
    )


def test_columns_are_found_by_their_type(hub: Hub, tmp_path: Path) -> None:
    hub({"train": part([(8, 8)] * 6), "test": part([(8, 8)] * 4)})

    data = hugging_face("someone/pets", root=tmp_path, limit=3)

    assert data.train_inputs.shape == (3, 3, 8, 8)
    assert (data.train_inputs[:, 0, 0, 0] * 255).round().tolist() == [0, 10, 20]
    assert data.test_labels.tolist() == [0, 1, 0]
    assert (data.name, data.class_names) == ("hf:someone/pets", ("cat", "dog"))


def test_without_a_test_split_a_fifth_is_set_aside(hub: Hub, tmp_path: Path) -> None:
    hub({"train": part([(8, 8)] * 20, mode="L")})

    data = hugging_face("someone/pets", root=tmp_path)

    assert data.train_inputs.shape == (16, 1, 8, 8)
    assert data.test_inputs.shape == (4, 1, 8, 8)


def test_images_of_different_sizes_need_a_size(hub: Hub, tmp_path: Path) -> None:
    hub({"train": part([(8, 8), (9, 12)] * 5)})

    with pytest.raises(ConfigError, match=r"different sizes; set data\.options\.image_size"):
        hugging_face("someone/pets", root=tmp_path)

    data = hugging_face("someone/pets", root=tmp_path, image_size=8)
    assert data.input_shape == (3, 8, 8)


def test_a_data_set_without_classes_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub({"train": part([(8, 8)] * 4, label=datasets.Value("int64"))})

    with pytest.raises(
        ConfigError, match=r"no column of type ClassLabel; it has picture \(Image\)"
    ):
        hugging_face("someone/pets", root=tmp_path)


def test_a_data_set_without_a_training_split_is_refused(hub: Hub, tmp_path: Path) -> None:
    hub({"validation": part([(8, 8)] * 4)})

    with pytest.raises(ConfigError, match="no split called 'train'; it has validation"):
        hugging_face("someone/pets", root=tmp_path)


def test_without_a_network_the_message_says_so(hub: Hub, tmp_path: Path) -> None:
    hub(ConnectionError("Couldn't reach 'someone/pets' on the Hub"))

    with pytest.raises(
        DataMissing, match=r"hf:someone/pets could not be loaded: .*needs a network"
    ):
        hugging_face("someone/pets", root=tmp_path)


def spoken(labels: list[Any], kind: Any) -> Any:
    features = datasets.Features({"text": datasets.Value("string"), "label": kind})
    texts = [f"Words number {place}." for place in range(len(labels))]
    return datasets.Dataset.from_dict({"text": texts, "label": labels}, features=features)


@pytest.mark.parametrize(
    ("labels", "kind", "names"),
    [
        (["no", "yes"] * 10, datasets.Value("string"), ("no", "yes")),
        ([-1, 1] * 10, datasets.Value("int64"), ("-1", "1")),
        ([0, 1] * 10, datasets.ClassLabel(names=NAMES), ("cat", "dog")),
    ],
)
def test_texts_of_the_hub_have_classes_whatever_they_are_called(
    labels: list[Any], kind: Any, names: tuple[str, ...], hub: Hub, tmp_path: Path
) -> None:
    hub({"train": spoken(labels, kind)})

    data = hugging_face_text("someone/talk", root=tmp_path, task="classes", vocabulary_size=60)

    assert (data.name, data.class_names) == ("hf-text:someone/talk", names)
    assert set(data.train_labels.tolist()) == {0, 1}
    with pytest.raises(ConfigError, match="has no column 'sentence'; it has text, label"):
        hugging_face_text("someone/talk", root=tmp_path, text_column="sentence")
