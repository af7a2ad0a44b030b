"""What came out of a sweep."""

from typing import Literal

from fedsim.records import FORMAT
from fedsim.schemas.course import Environment
from fedsim.schemas.document import Count, Document, Modality, Seconds, Share
from fedsim.schemas.statistics import Interval


class AttackerRow(Document):
    """What one attacker got out of one cell of a sweep, over all seeds."""

    attack: str
    """Name of the attack."""
    time_budget_s: Seconds
    """Wall-clock seconds it was allowed per update."""
    refused: str | None = None
    """Why it cannot attack this experiment at all; nothing else is known then."""
    victims: Count = 0
    """Attacked updates."""
    failed: Count = 0
    """Of these, attacks that came to no guess."""
    unfinished: Count = 0
    """Of these, attacks that ran out of time."""
    num_images: Count = 0
    """Private images behind them."""
    psnr_db: Interval | None = None
    """Median over all private images; one without a guess counts as the data mean. The interval is
    a percentile bootstrap over images."""
    psnr_std_db: float | None = None
    """Sample standard deviation over images; null for a single one."""
    best_psnr_db: float | None = None
    """The best guessed image."""
    ssim: float | None = None
    """Median over images, counted alike."""
    num_recovered: Count = 0
    """Images at or above the threshold."""
    success_rate: Interval | None = None
    """Share of images recovered; the interval is exact (Clopper-Pearson)."""
    label_accuracy: Share | None = None
    """Mean over private images of attacks that guessed labels."""
    data_mean_psnr_db: float | None = None
    """Median that guessing the mean of public images gives."""
    seconds_per_victim: Seconds | None = None
    """Mean wall time of an attack, failed ones included."""
    modality: Modality = "image"
    """What private examples are; of texts and rows, what is said of images holds."""
    accuracy: Interval | None = None
    """Of texts and rows, in place of `psnr_db`."""
    accuracy_std: float | None = None
    """Of texts and rows, in place of `psnr_std_db`."""
    best_accuracy: Share | None = None
    """Of texts and rows, in place of `best_psnr_db`."""
    data_mean_accuracy: Share | None = None
    """Of texts and rows, in place of `data_mean_psnr_db`."""


class PublishedRow(Document):
    """What a paper reports for a cell."""

    accuracy: Share | None = None
    """Share of the test split that is classified right."""
    below: bool = False
    """Whether the accuracy is only known to be at most this."""
    defends: bool | None = None
    """Whether the paper says that nothing recognisable came back."""


class SweepPart(Document):
    """What the strongest attacker of a cell got of some of the images that any cell is after."""

    num_images: Count
    """Private images."""
    num_attacked: Count
    """Of these, images behind updates that the adversary got hold of, and attacked."""
    num_recovered: Count
    """Of these, images at or above the threshold."""
    psnr_db: float | None
    """Median over guessed images."""
    isolated: dict[str, Count]
    """Updates that it got hold of, by how: heard as they were sent, exact, estimated."""
    modality: Modality = "image"
    """What private examples are; of texts and rows, what is said of images holds."""
    accuracy: Share | None = None
    """Of texts and rows, in place of `psnr_db`."""


class SweepReach(Document):
    """Who listened where in a cell, and what that gave."""

    attacker: str | None
    """Role of the attacker that this is about: it recovered most; of equal ones it came closest."""
    adversary: str
    """Name of the threat model."""
    protocol: str
    """How participants trained."""
    topology: str
    """Who spoke to whom."""
    hears: Share | None
    """Share of the links that the adversary hears; null with a server."""
    whole: SweepPart
    """Over all images."""
    rounds: dict[str, SweepPart]
    """By round."""
    distances: dict[str, SweepPart]
    """By links between victim and adversary; 0 is a victim that it hears at the source."""
    update_error: float | None
    """Median relative error of updates that are not heard as they were sent."""
    consensus_distance: float | None
    """Of the training that measures utility, at its last evaluation; mean over seeds."""
    worst_peer: Share | None
    """Accuracy of the worst peer, likewise."""
    best_peer: Share | None
    """Accuracy of the best peer, likewise."""
    bytes_sent: float | None
    """Mean array bytes that a participant sends in a round of the attacked run, to everybody."""


class SweepCell(Document):
    """A row of a sweep: one cell, over its seeds."""

    number: Count
    """Its place in the sweep, from 1."""
    label: str
    """How tables call it."""
    family: str
    """What shares its colour."""
    levels: dict[str, str]
    """Label of the level of each axis; empty outside the grid."""
    defense: str
    """Name of the chain of defenses."""
    status: Literal["done", "partial", "failed", "missing"]
    """Partial: some seeds failed or are missing; missing: nothing was run yet."""
    reason: str | None = None
    """Why seeds failed."""
    seeds: list[int]
    """Seeds whose attacked run is there."""
    accuracy: Interval | None = None
    """Mean over seeds, at the last evaluation; the interval is a percentile bootstrap over seeds,
    which is too narrow for few of them."""
    accuracy_std: float | None = None
    """Sample standard deviation over seeds; null for a single one."""
    utility_rounds: list[int] = []
    """Rounds of training behind the accuracy, per seed."""
    baseline_accuracy: float | None = None
    """Accuracy of the cell without a defense that shares most levels with this one."""
    attackers: dict[str, AttackerRow] = {}
    """By role: original, plain, adaptive, auto."""
    strongest: str | None = None
    """The role with the highest median PSNR, or accuracy."""
    epsilon: float | None = None
    """Largest over seeds, of the training that measures utility; null without an accountant."""
    delta: float | None = None
    """That goes with it."""
    bytes_up: float | None = None
    """Mean array bytes of an update of the attacked run, packed without loss; where clients did not
    pack, what packing makes of the updates heard."""
    reach: SweepReach | None = None
    """Who listened where; null in a sweep over defenses, and where nothing was run."""
    seconds: Seconds = 0.0
    """Wall time of its jobs, over all seeds; one that cells share counts in each."""
    published: PublishedRow = PublishedRow()
    """What a paper reports."""


class SweepSeed(Document):
    """One cell under one seed."""

    number: Count
    """Of the cell."""
    label: str
    """Of the cell."""
    seed: int
    """The seed."""
    status: Literal["done", "failed", "missing"]
    """How its jobs ended."""
    reason: str | None = None
    """Why one failed."""
    accuracy: float | None = None
    """At the last evaluation."""
    utility_rounds: Count | None = None
    """Rounds of training behind it."""
    psnr_db: dict[str, float | None] = {}
    """Median over images, by role."""
    attack_accuracy: dict[str, float | None] = {}
    """Of texts and rows, in place of `psnr_db`."""
    success_rate: dict[str, float | None] = {}
    """Share of images recovered, by role."""
    epsilon: float | None = None
    """Of the training that measures utility."""
    bytes_up: float | None = None
    """Mean array bytes of an update of the attacked run, packed without loss; where clients did not
    pack, what packing makes of the updates heard."""
    run: str = ""
    """The attacked run, below the folder of the sweep."""
    utility_run: str = ""
    """The run that measures utility; often the same."""


class SweepRecord(Document):
    """`sweep.json`: what a sweep came to."""

    format: int = FORMAT
    """Version of run directories, which this goes with."""
    name: str
    """Of the sweep."""
    description: str
    """One line for people."""
    status: Literal["done", "interrupted"]
    """Whether every job ended; failed ones did."""
    compares: Literal["defenses", "adversaries"] = "defenses"
    """What the cells differ in."""
    same_batches: bool | None = None
    """Whether clients that several cells attack trained on the same images in each; null in a sweep
    over defenses."""
    confidence: Share
    """Of all intervals."""
    success_threshold_db: float
    """PSNR from which an image counts as recovered, of the first cell."""
    success_accuracy: Share | None = None
    """Accuracy from which a text or a row counts as recovered, of the first cell; null where all
    cells hold images."""
    own_utility: bool
    """Whether utility comes from a training of its own."""
    utility_note: str
    """What readers must know of it."""
    environment: Environment
    """Versions and hardware of the last call."""
    seconds: Seconds
    """Wall time of the last call."""
    cells: list[SweepCell]
    """A row per cell."""
    seeds: list[SweepSeed]
    """A row per cell and seed."""
