"""What came out of a run."""

from typing import Literal

from fedsim.records import FORMAT
from fedsim.schemas.document import Count, Document, Modality, RunStatus, Seconds, Sha256, Share
from fedsim.schemas.peers import PeersSummary
from fedsim.schemas.scores import Copies
from fedsim.schemas.statistics import Medians, Spread


class BaselineMedians(Document):
    """Medians of the baselines; see `Baselines` for what each one is."""

    random_guess: Medians
    """Uniform noise."""
    data_mean: Medians
    """Mean of the public sample."""
    nearest_public: Medians
    """Nearest of the public sample, chosen with the truth."""


class Leakage(Document):
    """What one attack got out of a run."""

    attack: str
    """Label of the attack."""
    threat: str
    """Name of the threat model."""
    defense: str
    """Name of the defense in force."""
    victims: Count
    """Attacked updates; a client attacked in two rounds counts twice. Unscored ones do not."""
    failed: Count
    """Of these, attacks that failed."""
    unfinished: Count
    """Of these, attacks that ran out of time."""
    num_images: Count
    """Private images behind the attacked updates."""
    num_guessed: Count
    """Of these, images that a guess was paired with; the spreads are over them."""
    num_recovered: Count
    """Of these, images at or above the threshold."""
    psnr_db: Spread | None
    """Over guessed images; null if there is none."""
    ssim: Spread | None
    """As `psnr_db`."""
    mse: Spread | None
    """As `psnr_db`."""
    label_accuracy: Share | None
    """Mean over private images of attacks that guessed labels."""
    success_rate: Share | None
    """`num_recovered` / `num_images`: images missed, and images of failed attacks, count as not
    recovered; null if the attack guesses labels alone."""
    success_threshold_db: float
    """PSNR from which an image counts as recovered."""
    baselines: BaselineMedians
    """Medians over the private images."""
    baseline_psnr_db: float | None
    """The median for `data_mean`, the baseline that tables show."""
    modality: Modality = "image"
    """What private examples are; of texts and rows, what is said of images holds."""
    accuracy: Spread | None = None
    """Of guessed texts, share of tokens at their place; of rows, share of features; null for images
    or if there is no guess."""
    exact: Share | None = None
    """Share of private texts or rows that were guessed without a fault; null for images."""
    rouge1: Spread | None = None
    """Of guessed texts, as `TextScore` says."""
    rouge2: Spread | None = None
    """As `rouge1`."""
    rouge_l: Spread | None = None
    """As `rouge1`."""
    baseline_accuracy: Share | None = None
    """Median accuracy of guessing the data mean; null for images."""
    success_accuracy: Share | None = None
    """Accuracy from which a text or a row counts as recovered; null for images."""
    seconds_per_victim: Seconds
    """Mean wall time of an attack, failed ones included."""
    registered_psnr_db: Spread | None = None
    """As `psnr_db`, after each guess was moved into place by a few pixels."""
    lpips: Spread | None = None
    """As `psnr_db`; null also where `lpips_reason` says why."""
    lpips_reason: str | None = None
    """Why some or all guesses have no LPIPS."""
    identified: Share | None = None
    """Share of guesses whose nearest image, in the private batch and the pool, is the private image
    that they are paired with; null if nothing was guessed."""
    pool_size: Count | None = None
    """Images in the smallest pool that this was found among, the private batch left out."""
    label_set_accuracy: Share | None = None
    """Mean over attacked updates of attacks that guessed labels."""
    label_count_accuracy: Share | None = None
    """Mean over private images of attacks that guessed labels."""
    copies: Copies = Copies()
    """Sums over attacked updates."""
    num_distinct: Count | None = None
    """Private images that are different from the others of their batch; null if not all scores say
    so."""
    distinct_recovered: Count = 0
    """Of these, images recovered."""
    certified: Count = 0
    """Guesses that the attack says it has proved."""
    certified_wrong: Count = 0
    """Of these, guesses that are wrong."""


class Utility(Document):
    """What the federation achieved."""

    accuracy: Share | None
    """At the last evaluation."""
    loss: float | None
    """At the last evaluation."""
    round: Count | None
    """Round of that evaluation."""


class Timing(Document):
    """Wall time in seconds."""

    training: Seconds
    """Until the last round was over."""
    attacks: Seconds
    """Sum over attacks, which run beside the training and beside each other."""
    total: Seconds
    """From start to end."""


class Summary(Document):
    """`summary.json`: what came out."""

    format: int = FORMAT
    """Version of the run directory."""
    status: RunStatus
    """How the run ended."""
    experiment: str
    """Name of the experiment."""
    engine: str
    """What ran the apps."""
    seed: int
    """Seed of the experiment."""
    rounds: Count
    """The last round that is whole."""
    rounds_without_update: Count = 0
    """Rounds that left the weights as they were: no reply was sound, or none was aggregated."""
    alarms: Count = 0
    """Alarms that checks of clients raised; `rounds.jsonl` has them."""
    weights_sha256: Sha256 | None
    """Digest of the final weights; null if there are none."""
    views_sha256: Sha256
    """Digest of everything the adversary heard."""
    utility: Utility
    """Accuracy and loss of the model."""
    epsilon: float | None = None
    """Differential privacy given away in all rounds, the most of any client, with `delta`; null
    without accounting, or where no epsilon is finite."""
    delta: float | None = None
    """The probability with which epsilon may be exceeded; null without accounting."""
    privacy_unit: Literal["example", "client"] | None = None
    """Whose presence is hidden: one example's, or all of a client's."""
    leakage: list[Leakage]
    """A row per attack, threat and defense, in order of name."""
    peers: PeersSummary | None = None
    """What is told of a run without a server alone; null for any other."""
    failed_attacks: Count
    """Attacks that failed."""
    unfinished_attacks: Count
    """Attacks that ran out of time."""
    unscored_attacks: Count
    """Attacks whose truth is not there."""
    seconds: Timing
    """Wall time of the run."""
