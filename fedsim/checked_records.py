"""Records of a run directory are checked against their published schema where they are read."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from fedsim.errors import Damaged
from fedsim.files import Record, read_json

if TYPE_CHECKING:
    from fedsim.schemas.document import Document


def read_checked(kind: "type[Document]", path: Path) -> Record:
    """Read one record, with what it leaves out filled in.

    Keys that this version does not know are left out: a later version of the same format may add
    some.

    Raises:
        Damaged: It is not of this kind.
        OSError: It cannot be read.
    """
    return checked(kind, read_json(path), path)


def checked(kind: "type[Document]", record: Record, path: Path) -> Record:
    """Return a record that was read from a file, as `read_checked` does."""
    known = {key: value for key, value in record.items() if key in kind.model_fields}
    try:
        return kind.model_validate(known, strict=False).model_dump()
    except (ValidationError, RecursionError) as error:
        raise Damaged(f"{path}: {_first(error)}") from error


def _first(error: ValidationError | RecursionError) -> str:
    if isinstance(error, RecursionError):
        return "nested too deeply"
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"'{place}': {first['msg']}" if place else first["msg"]
