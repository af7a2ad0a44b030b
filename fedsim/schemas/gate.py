"""What came out of a gate."""

from fedsim.records import FORMAT
from fedsim.schemas.document import Count, Document, Modality, Seconds, Share
from fedsim.schemas.statistics import Interval, Spread


class GateRecord(Document):
    """What `fedsim gate` came to."""

    format: int = FORMAT
    """Version of run directories, which this goes with."""
    experiment: str
    """Name of the experiment."""
    defense: str
    """Name of its chain of defenses."""
    threat: str
    """Name of its threat model."""
    passed: bool
    """The verdict."""
    claim: str
    """What was tested, as a sentence."""
    verdict: str
    """What came of it, as a sentence."""
    attack: str
    """Name of the attack."""
    time_budget_s: Seconds
    """Wall-clock seconds it was allowed per update."""
    threshold_db: float
    """PSNR from which an image counts as recovered."""
    tolerated: Share
    """Share of updates that may give an image away."""
    confidence: Share
    """Of the claim, one-sided."""
    planned: Count
    """Updates that are attacked if nothing ends it early."""
    allowed: Count
    """Of these, so many may give an image away."""
    victims: Count
    """Updates that were attacked; without those whose attack failed."""
    broken: Count
    """Of these, updates of which an image was recovered."""
    share: Interval
    """Share broken, with its two-sided exact interval (Clopper-Pearson) at this confidence."""
    bound: Share
    """One-sided upper bound of the share at this confidence."""
    failed: Count
    """Attacks that came to no guess; they count neither way."""
    unfinished: Count
    """Attacks that ran out of time; their best guess so far counted."""
    num_images: Count
    """Private images behind the attacked updates."""
    psnr_db: Spread | None
    """Over guessed images."""
    baseline_psnr_db: float | None
    """Median that guessing the mean of public images gives."""
    modality: Modality = "image"
    """What private examples are; of texts and rows, what is said of images holds."""
    success_accuracy: Share | None = None
    """Accuracy from which a text or a row counts as recovered; null for images."""
    accuracy: Spread | None = None
    """Of guessed texts and rows, in place of `psnr_db`."""
    baseline_accuracy: Share | None = None
    """Of texts and rows, in place of `baseline_psnr_db`."""
    seeds: list[int]
    """Seeds of its runs."""
    runs: list[str]
    """Names of its run directories."""
    seconds: Seconds
    """Wall time."""
