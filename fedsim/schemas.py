"""What every JSON record of a run directory holds: the contract with other programs.

`docs/schemas/*.json` are made from these models, by `python -m fedsim.schemas docs/schemas`.
A later version of the same format may add keys; it never removes one or changes its meaning.
"""

import json
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from attacks.observation import Kind
from attacks.threats import Capability, Position
from fedsim.records import FORMAT, replace_bytes

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(ge=0)]
Status = Literal["done", "unfinished", "failed", "unscored"]
RunStatus = Literal["done", "interrupted", "failed"]


class Document(BaseModel):
    """A JSON object."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )


class Environment(Document):
    """`environment.json`: versions and hardware; no names of people, machines or folders."""

    format: int
    """Version of the run directory."""
    fedsim: str
    """Version of fedsim."""
    python: str
    """Version of Python."""
    packages: dict[str, str | None]
    """Versions of the packages that results may depend on; null if one is not installed."""
    platform: str
    """Operating system and processor family."""
    cpu_count: int | None
    """Processors."""
    gpu: str | None
    """Name of the first GPU."""
    started: str
    """When the run was started, ISO 8601 with time zone."""


class Grant(Document):
    """One thing the adversary may hear, know or do."""

    capability: Capability
    """As experiments name it."""
    meaning: str
    """For people."""


class Threat(Document):
    """`threat.json`: who the adversary is."""

    name: str
    """As experiments name it; grants beyond those of the named threat model follow after `+`."""
    position: Position
    """Where it sits."""
    active: bool
    """Whether it changes what is sent."""
    oracle: bool
    """Whether it is told something no real adversary would know."""
    hears_sum: bool = False
    """Whether all it hears of a round is the mean of the updates."""
    summary: str
    """One line for people."""
    grants: list[Grant]
    """All that it is granted."""


class AttackName(Document):
    """An attack that has clients train another model."""

    name: str
    """As experiments name it."""
    label: str
    """As records and reports call it; empty for its name."""
    options: dict[str, Any]
    """Its settings."""


class ModelDefenseName(Document):
    """A defense that changes the model that everybody trains."""

    name: str
    """As experiments name it."""
    label: str
    """As records and reports call it; empty for its name."""
    options: dict[str, Any]
    """Its settings."""


class ModelName(Document):
    """An architecture."""

    name: str
    """As experiments name it."""
    options: dict[str, Any]
    """Its settings."""
    altered_by: list[ModelDefenseName] = []
    """The defenses that changed it, in order; before an active attack did."""
    implanted_by: AttackName | None = None
    """The active attack that was asked to change it; null if there is none."""


class Recipe(Document):
    """How clients train."""

    num_steps: Count
    """Optimizer steps per round, the most that any client takes."""
    learning_rate: float | None
    """Of local SGD; null where clients send gradients."""
    momentum: float
    """Of local SGD."""
    num_epochs: Count
    """Passes over the local data in a round, if `max_steps` does not end it."""
    batch_size: Count | None = None
    """Examples per step; null where all examples behind an update make one step."""
    max_steps: Count | None = None
    """Steps after which a client stops in any case; null for no such limit."""
    proximal_mu: float = 0.0
    """FedProx's pull of each step towards the weights received."""
    train_mode: bool
    """Whether layers run in training mode."""


class DefenseName(Document):
    """A link of the chain of defenses that the adversary is told of."""

    name: str
    """As experiments name it."""
    label: str
    """As records and reports call it; empty for its name."""
    options: dict[str, Any] | None
    """Its settings; null where the adversary is told the name alone."""


class KnowledgeRecord(Document):
    """`knowledge.json`: what attacks are told; a key is there only if the threat grants it."""

    model: ModelName | None = None
    """The architecture."""
    loss: str | None = None
    """Training loss."""
    num_classes: Count | None = None
    """Width of the model's output."""
    input_shape: list[int] | None = None
    """Shape of one input, [C, H, W]."""
    input_range: tuple[float, float] | None = None
    """Lowest and highest value of an input."""
    batch_size: Count | None = None
    """Different examples behind an update, the most of any client; a message that announces its
    number of examples overrules it."""
    recipe: Recipe | None = None
    """How clients train."""
    defenses: list[DefenseName] | None = None
    """What clients do to an update before they send it, in order."""
    labels: Literal["oracle"] | None = None
    """Whether private labels are told; they lie in `oracle/`."""


class OracleLabels(Document):
    """`oracle/round-RRRRR-CLIENT.json`: private labels, where the threat grants them."""

    labels: list[int]
    """In the order of the private batch."""


class Alarm(Document):
    """What a check of a client noticed about the weights that it received."""

    check: str
    """Name of the check."""
    message: str
    """For people."""
    value: float | None
    """What was measured; null if it was not a finite number."""
    threshold: float
    """The value from which, or below which, the check raises an alarm."""


class Alarms(Document):
    """`alarms/round-RRRRR-CLIENT.json`: what a client noticed; there only if it did."""

    alarms: list[Alarm]
    """In the order of the checks."""


class RoundAlarm(Alarm):
    """An alarm, and who raised it."""

    client: int
    """Number of the client."""


class Round(Document):
    """A line of `rounds.jsonl`; of several lines for one round the last one counts."""

    round: Count
    """From 1; 0 is the model before training."""
    accuracy: Share | None = None
    """On the test split; null in rounds that are not evaluated."""
    loss: float | None = None
    """Mean cross entropy on the test split."""
    train_loss: float | None = None
    """Mean of what clients reported, weighted by examples."""
    client_accuracy: Share | None = None
    """Mean of what clients measured on their own data, if asked."""
    client_loss: float | None = None
    """As `client_accuracy`."""
    clients: list[int] = []
    """Clients whose updates were used."""
    replies: Count = 0
    """Messages that came back."""
    rejected: Count = 0
    """Replies that were refused; `events.jsonl` says why."""
    tampered: list[int] = []
    """Clients that were sent weights other than those in force; they are not aggregated."""
    alarms: list[RoundAlarm] = []
    """What clients noticed about the weights that they received, if they check them."""
    secure_aggregation: dict[str, list[int]] = {}
    """Clients that answered, by stage of secure aggregation: keys, shares, masked, unmask."""
    epsilon: float | None = None
    """Differential privacy that is given away once this round is over, the most of any client, with
    `delta`; null without accounting, or where no epsilon is finite."""
    delta: float | None = None
    """The probability with which epsilon may be exceeded; null without accounting."""
    privacy_unit: Literal["example", "client"] | None = None
    """Whose presence is hidden: one example's, or all of a client's."""
    bytes_up: Count = 0
    """Array bytes from clients."""
    bytes_down: Count = 0
    """Array bytes to clients."""
    seconds: Seconds = 0.0
    """Wall time of the round."""


class Event(Document):
    """A line of `events.jsonl`: a fault, a refused message, a crashed attack, a resume."""

    model_config = ConfigDict(extra="allow")

    time: str
    """ISO 8601 with time zone."""
    kind: str
    """A short name."""
    message: str
    """For people."""


class ObservationRecord(Document):
    """`observations/ID.json`: what the adversary heard of one message; tensors lie beside it."""

    id: str
    """Also the stem of both files."""
    round: Count
    """Round of the message."""
    sender: str
    """Who sent it, as `client-3`; `all` for a mean over clients, unless one of them is attacked."""
    receiver: str
    """Whom it was meant for."""
    members: list[str] = []
    """Whose updates are in the mean; empty for a message of one client."""
    kind: Kind
    """What the tensors are."""
    num_examples: int | None
    """As the message announces it; null if it does not."""
    num_bytes: int | None = None
    """Size of the message, where nothing but that was heard."""
    masked: bool
    """Whether only some coordinates were heard (`visible/NAME` says which)."""
    weights: Sha256 | None
    """Digest of the weights in force, in `observations/models/`; null if they were not heard."""
    buffers: Sha256 | None
    """As `weights`, for running statistics."""
    buffers_after: bool = False
    """Whether running statistics that the client sent back were heard (`buffers-after/NAME`)."""
    sha256: Sha256
    """Digest of the tensors."""


class SnapshotRecord(Document):
    """Where an attack stood; the tensor is `snapshot/NNN`."""

    step: Count
    """Steps taken."""
    matching_loss: float | None
    """What the attacker saw; null if it was not a number."""


class ReconstructionRecord(Document):
    """`reconstructions/OBSERVATION--ATTACK.json`: what an attack came to."""

    observation: str
    """What was attacked."""
    round: Count
    """Its round."""
    victim: str
    """Who sent it."""
    attack: str
    """Label of the attack in the experiment."""
    status: Literal["done", "unfinished", "failed"]
    """Unfinished: its time ran out, the best guess so far counts."""
    reason: str | None
    """Why it failed."""
    seconds: Seconds
    """Wall time."""
    matching_loss: float | None = None
    """What the attacker saw; the guess was chosen by it."""
    steps: Count = 0
    """Optimizer steps."""
    num_certified: Count | None = None
    """Guesses that the attack has proved; null if it proves nothing."""
    snapshots: list[SnapshotRecord] = []
    """How the guess came about, first to last."""
    notes: dict[str, str | float | None] = {}
    """What the attack wants to be known."""
    sha256: Sha256 | None = None
    """Digest of the tensors."""


class ImageScore(Document):
    """One private image and the guess paired with it."""

    truth: Count
    """Place of the private image in its batch."""
    guess: Count | None
    """Place of the guess; null if none was left for this image: a miss."""
    mse: float | None
    """Mean squared error, pixels in [0, 1]."""
    psnr_db: float | None
    """Peak signal-to-noise ratio, at most 120."""
    ssim: float | None
    """Structural similarity."""
    label: int
    """Private label."""
    guessed_label: int | None
    """Label guessed with this image; null if none was."""
    recovered: bool
    """Whether the PSNR reaches the threshold."""
    registered_psnr_db: float | None = None
    """PSNR after the guess was moved into place by a few pixels; see `registration_window`."""
    lpips: float | None = None
    """Perceptual distance, lower is closer; null also where the score's `lpips_reason` says why."""
    identified: bool | None = None
    """Whether this is the image nearest to the guess, in its batch and in the pool of the score;
    null without a guess."""
    certified: bool | None = None
    """Whether the attack says that it has proved this guess; null if it proves nothing."""


class Copies(Document):
    """Images that are the same up to the rounding of float32 (MSE of 1e-12 or less)."""

    private: Count = 0
    """Private images that repeat an earlier one of their batch: which guess is paired with which
    of them means nothing, and recovering both is no more than recovering one."""
    guesses: Count = 0
    """Guesses that repeat an earlier guess."""
    public: Count = 0
    """Guesses that repeat an image of the public sample."""


class Quality(Document):
    """A guess that needs no attack, scored like one: a value per private image."""

    mse: list[float] = []
    """Mean squared errors."""
    psnr_db: list[float] = []
    """Peak signal-to-noise ratios."""
    ssim: list[float] = []
    """Structural similarities."""
    registered_psnr_db: list[float] = []
    """As `psnr_db`, after the guess was moved into place."""


class Baselines(Document):
    """What guessing without the update achieves; empty lists where the truth is not there."""

    random_guess: Quality = Quality()
    """As many images of uniform noise, paired with the truth like an attack's."""
    data_mean: Quality = Quality()
    """The mean of the public sample, for every image."""
    nearest_public: Quality = Quality()
    """For each image the nearest of the public sample. It is chosen with the truth, and may serve
    twice: an upper bound on what guessing from public data can do, not an adversary."""


class Score(Document):
    """A line of `scores.jsonl`: one attack on one observation; the last line of a pair counts."""

    observation: str
    """What was attacked."""
    round: Count
    """Its round."""
    victim: str
    """Who sent it."""
    attack: str
    """Label of the attack in the experiment."""
    threat: str
    """Name of the threat model."""
    defense: str
    """Name of the defense in force."""
    status: Status
    """Unscored: the truth is not there; counted neither as success nor as failure."""
    reason: str | None
    """Why it failed, was not scored, or was scored in part."""
    batch_size: Count | None
    """Private images behind the update; null if the truth is not there."""
    images: list[ImageScore]
    """A value per private image; empty if the attack failed or guessed no images."""
    label_accuracy: Share | None
    """Share of private labels guessed right: of paired images, or as a multiset when the attack
    guesses labels alone; null if it guesses none."""
    success_rate: Share | None
    """Share of private images recovered, 0 for a failed attack; null if it guesses labels alone or
    was not scored."""
    success_threshold_db: float
    """PSNR from which an image counts as recovered."""
    baselines: Baselines
    """Three guesses that need no attack."""
    matching_loss: float | None
    """What the attacker saw."""
    steps: Count
    """Optimizer steps."""
    seconds: Seconds
    """Wall time of the attack."""
    label_set_accuracy: Share | None = None
    """Classes both private and guessed over classes either private or guessed; null if the attack
    guesses no labels."""
    label_count_accuracy: Share | None = None
    """Share of private labels that the guessed ones name, each counted once, whatever image they
    come with; null if the attack guesses no labels."""
    registration_window: tuple[Count, Count] | None = None
    """Furthest move of `registered_psnr_db`, in pixels down and right."""
    pool_size: Count = 0
    """Images beside the private batch that a guess could have been nearer to: the public sample,
    and private images of earlier rounds."""
    lpips_reason: str | None = None
    """Why there is no LPIPS, if there is none."""
    copies: Copies = Copies()
    """Images that are copies of others."""
    num_distinct: Count | None = None
    """Different private images; null if the truth is not there."""
    distinct_recovered: Count = 0
    """Different private images that were recovered."""
    certified: Count = 0
    """Guesses that the attack says it has proved."""
    certified_wrong: Count = 0
    """Of these, guesses that are wrong: paired with no private image, below the threshold, or with
    a wrong label."""


class Spread(Document):
    """A quality over images."""

    mean: float
    """Mean."""
    median: float
    """Median."""
    best: float
    """The highest for PSNR and SSIM, the lowest for MSE."""
    worst: float
    """The other end."""
    std: float | None
    """Sample standard deviation; null for a single image."""


class Medians(Document):
    """A baseline over images."""

    mse: float | None
    """Median over images."""
    psnr_db: float | None
    """Median over images."""
    ssim: float | None
    """Median over images."""
    registered_psnr_db: float | None = None
    """Median over images."""


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
    failed_attacks: Count
    """Attacks that failed."""
    unfinished_attacks: Count
    """Attacks that ran out of time."""
    unscored_attacks: Count
    """Attacks whose truth is not there."""
    seconds: Timing
    """Wall time of the run."""


class Interval(Document):
    """A measured value and how sure it is."""

    value: float
    """What was measured."""
    low: float | None = None
    """Lower end at the confidence of the document; null where there is too little to tell."""
    high: float | None = None
    """Upper end."""


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


class PublishedRow(Document):
    """What a paper reports for a cell."""

    accuracy: Share | None = None
    """Share of the test split that is classified right."""
    below: bool = False
    """Whether the accuracy is only known to be at most this."""
    defends: bool | None = None
    """Whether the paper says that nothing recognisable came back."""


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
    """By role: plain, adaptive, auto."""
    strongest: str | None = None
    """The role with the highest median PSNR."""
    epsilon: float | None = None
    """Largest over seeds, of the training that measures utility; null without an accountant."""
    delta: float | None = None
    """That goes with it."""
    bytes_up: float | None = None
    """Mean array bytes that a client sends in a round of the attacked run."""
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
    success_rate: dict[str, float | None] = {}
    """Share of images recovered, by role."""
    epsilon: float | None = None
    """Of the training that measures utility."""
    bytes_up: float | None = None
    """Mean array bytes that a client sends in a round of the attacked run."""
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
    confidence: Share
    """Of all intervals."""
    success_threshold_db: float
    """PSNR from which an image counts as recovered, of the first cell."""
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
    seeds: list[int]
    """Seeds of its runs."""
    runs: list[str]
    """Names of its run directories."""
    seconds: Seconds
    """Wall time."""


DOCUMENTS: dict[str, type[Document]] = {
    "environment": Environment,
    "threat": Threat,
    "knowledge": KnowledgeRecord,
    "oracle": OracleLabels,
    "alarms": Alarms,
    "round": Round,
    "event": Event,
    "observation": ObservationRecord,
    "reconstruction": ReconstructionRecord,
    "score": Score,
    "summary": Summary,
    "sweep": SweepRecord,
    "gate": GateRecord,
}
"""Every kind of record, by the name of its schema file."""


def schema(name: str) -> dict[str, Any]:
    """Return the JSON schema of one kind of record."""
    return {"$id": f"{name}.json", **DOCUMENTS[name].model_json_schema()}


def write_schemas(folder: Path) -> None:
    """Write `NAME.json` for every kind of record."""
    for name in DOCUMENTS:
        replace_bytes(folder / f"{name}.json", (json.dumps(schema(name), indent=2) + "\n").encode())


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
