"""Private examples and guesses as people read them: `data.json` says what the numbers mean."""

from dataclasses import asdict, dataclass
from functools import cached_property

from torch import Tensor

from attacks.tabular.columns import Column, Columns
from attacks.text.tokens import Tokens
from fedsim.data.vocabulary import BLANK, written
from fedsim.files import Record, read_json, reading, replace_json
from fedsim.records import RunDirectory
from fedsim.schemas.data import ColumnRecord, DataRecord, TokensRecord
from fedsim.schemas.document import Modality
from fedsim.tasks import Task


@dataclass(frozen=True, kw_only=True, eq=False)
class Reader:
    """Reads the inputs of a run.

    Attributes:
        modality: What an example is.
        class_names: Classes by label.
        words: Of text, the tokens by number.
        tokens: Of text, what is public of the vocabulary.
        columns: Of a table, its features.
    """

    modality: Modality = "image"
    class_names: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    tokens: Tokens | None = None
    columns: Columns | None = None

    @cached_property
    def byte_level(self) -> bool:
        """Whether the vocabulary writes bytes as letters, as GPT-2's does."""
        return any(word.startswith(BLANK) for word in self.words)

    def pieces(self, tokens: Tensor) -> list[str]:
        """Return the tokens (T,) of a text, without pads, as the vocabulary writes them."""
        pad = None if self.tokens is None else self.tokens.pad
        return [self.word(int(one)) for one in tokens if int(one) != pad]

    def word(self, token: int) -> str:
        """Return a token as the vocabulary writes it."""
        return self.words[token] if 0 <= token < len(self.words) else f"[{token}]"

    def text(self, tokens: Tensor) -> str:
        """Return a text (T,) as one reads it, without special tokens."""
        special = frozenset() if self.tokens is None else self.tokens.special
        return written([self.word(int(one)) for one in tokens if int(one) not in special])

    def cells(self, row: Tensor) -> list[str]:
        """Return the features of a row (D,) as one reads them."""
        if self.columns is None:
            return []
        found = []
        for column, place in self.columns.places():
            part = row[place]
            if column.categories:
                found.append(column.categories[int(part.argmax())])
            else:
                value = column.low + (column.high - column.low) * float(part[0])
                found.append(f"{value:.0f}" if column.whole else f"{value:.4g}")
        return found


def write_data(run: RunDirectory, task: Task) -> None:
    """Write what the numbers of inputs and labels of a run stand for."""
    columns = () if task.columns is None else task.columns.columns
    record = DataRecord(
        name=task.data.name,
        modality=task.data.modality,
        class_names=list(task.data.class_names),
        words=list(getattr(task.data, "words", ())),
        tokens=None if task.tokens is None else TokensRecord(**asdict(task.tokens)),
        columns=[
            ColumnRecord(**(asdict(one) | {"categories": list(one.categories)})) for one in columns
        ],
    )
    replace_json(run.data, record.model_dump(mode="json", exclude_defaults=True))


def read_data(run: RunDirectory) -> Reader:
    """Return who reads the inputs of a run; runs of earlier versions hold images.

    Raises:
        Damaged: The file is not as `write_data` wrote it.
    """
    if not run.data.is_file():
        return Reader()
    told: Record = read_json(run.data)
    with reading(run.data):
        record = DataRecord(**told)
        columns = [
            Column(**(one.model_dump() | {"categories": tuple(one.categories)}))
            for one in record.columns
        ]
        return Reader(
            modality=record.modality,
            class_names=tuple(record.class_names),
            words=tuple(record.words),
            tokens=None if record.tokens is None else Tokens(**record.tokens.model_dump()),
            columns=Columns(columns=columns) if columns else None,
        )
