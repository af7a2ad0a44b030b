"""What the examples of a run are, for those who show them."""

from fedsim.schemas.document import Count, Document, Modality


class ColumnRecord(Document):
    """One feature of a table; see `attacks.tabular.columns.Column`."""

    name: str
    """Of the feature."""
    categories: list[str] = []
    """Their names; empty for a number."""
    low: float = 0.0
    """The lowest value of a number."""
    high: float = 1.0
    """The highest."""
    whole: bool = False
    """Whether a number is a whole one."""


class TokensRecord(Document):
    """The facts of a vocabulary; see `attacks.text.tokens.Tokens`."""

    vocabulary_size: Count
    """V."""
    head: str
    """What is predicted: masked, causal or classes."""
    pad: Count
    """Fills texts up."""
    start: Count | None = None
    """Opens a text."""
    end: Count | None = None
    """Closes it."""
    mask: Count | None = None
    """Stands in for a token that is to be predicted."""
    unknown: Count | None = None
    """Stands in for what has no token."""


class DataRecord(Document):
    """`data.json`: what the numbers of inputs and labels stand for."""

    name: str
    """The data set, as the experiment names it."""
    modality: Modality
    """What an example is."""
    class_names: list[str]
    """Classes by label; empty where tokens are predicted."""
    words: list[str] = []
    """Of text, the tokens by number."""
    tokens: TokensRecord | None = None
    """Of text, what is public of the vocabulary."""
    columns: list[ColumnRecord] = []
    """Of a table, its features."""
