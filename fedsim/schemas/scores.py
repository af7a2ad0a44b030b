"""How close an attack came on one observation."""

from typing import Literal

from fedsim.schemas.document import Count, Document, Modality, Seconds, Share, Status

Baseline = Literal["random_guess", "data_mean", "nearest_public"]


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


class TextScore(Document):
    """One private text and the guess paired with it; pads count for nothing."""

    truth: Count
    """Place of the private text in its batch."""
    guess: Count | None = None
    """Place of the guess; null if none was left for this text: a miss."""
    accuracy: Share | None = None
    """Share of private tokens that stand at their place in the guess."""
    exact: bool = False
    """Whether the guess is the text, token by token."""
    rouge1: Share | None = None
    """F-measure of single tokens that guess and text share, in any order."""
    rouge2: Share | None = None
    """F-measure of pairs of tokens that follow each other."""
    rouge_l: Share | None = None
    """F-measure of the longest common subsequence."""
    num_tokens: Count
    """Private tokens, without special ones."""
    label: int | None
    """Private class; null where tokens are predicted."""
    guessed_label: int | None = None
    """Class guessed with this text; null if none was."""
    recovered: bool = False
    """Whether the accuracy reaches the threshold; never of a text without tokens."""
    certified: bool | None = None
    """Whether the attack says that it has proved this guess; null if it proves nothing."""


class RowScore(Document):
    """One private row of a table and the guess paired with it."""

    truth: Count
    """Place of the private row in its batch."""
    guess: Count | None = None
    """Place of the guess; null if none was left for this row: a miss."""
    accuracy: Share | None = None
    """Share of features that are right: categories the same, numbers within the tolerance."""
    exact: bool = False
    """Whether all are."""
    wrong: list[Count] = []
    """The features that are not, by place in the table."""
    confidence: list[Share] = []
    """How sure the attack is of each feature; empty if it does not say."""
    label: int
    """Private label."""
    guessed_label: int | None = None
    """Label guessed with this row; null if none was."""
    recovered: bool = False
    """Whether the accuracy reaches the threshold."""
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
    modality: Modality = "image"
    """What private examples are; of texts and rows, everything that is said of images holds."""
    texts: list[TextScore] = []
    """In place of `images`, where clients hold text."""
    rows: list[RowScore] = []
    """In place of `images`, where clients hold a table."""
    success_accuracy: Share | None = None
    """Accuracy from which a text or a row counts as recovered; null for images."""
    baseline_accuracy: dict[Baseline, list[Share]] = {}
    """The baselines of texts and rows, as `accuracy`, a value per private one. `random_guess` draws
    tokens as often as the public sample has them, or one of its rows; `data_mean` is its most
    frequent token at each place, or each column's mode or mean."""
    tolerance: Share | None = None
    """Share of its range by which a number of a table may be off and be right; null if there is no
    table."""
    label_accuracy: Share | None
    """Share of private labels guessed right: of paired images, or as a multiset when the attack
    guesses labels alone; null if it guesses none."""
    success_rate: Share | None
    """Share of private images recovered, 0 for a failed attack; null if it guesses labels alone or
    was not scored."""
    success_threshold_db: float
    """PSNR from which an image counts as recovered."""
    baselines: Baselines
    """Three guesses that need no attack; empty for texts and rows."""
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
    update_error: float | None = None
    """Between peers, the error of the update that was attacked, relative to the true one, in the
    coordinates that were told; null where clients send their updates to a server."""
    weights_error: float | None = None
    """Between peers, the error of the weights in force that went with it, relative to the true
    ones; null where none did."""
