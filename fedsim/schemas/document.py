"""A JSON object, and the types of values that many of them hold."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Status = Literal["done", "unfinished", "failed", "unscored"]
Modality = Literal["image", "text", "table"]
RunStatus = Literal["done", "interrupted", "failed"]


class Document(BaseModel):
    """A JSON object."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
