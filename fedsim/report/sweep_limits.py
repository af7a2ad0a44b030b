"""From where the examples of a sweep count as recovered."""

from fedsim.schemas.document import Modality
from fedsim.schemas.sweep import SweepRecord


def limits_of(record: SweepRecord) -> dict[Modality, float]:
    """Return the threshold of each kind of examples."""
    share = 1.0 if record.success_accuracy is None else record.success_accuracy
    return {"image": record.success_threshold_db, "text": share, "table": share}
