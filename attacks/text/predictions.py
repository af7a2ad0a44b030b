"""What a batch of text predicts: the labels a gradient tells, and those that are searched for.

Of each head, a prediction gives the training loss of guessed embeddings, with `variables` that
stand for what is not known of its labels, and makes tokens and labels of both in the end.

- Masked: masked places have a far larger gradient by position, and for one example the gradient of
  the embedding of `mask` is exactly their sum; the labels are the negative entries of the gradient
  of the output bias. Which label belongs to which place is a soft assignment.
- Causal: the labels are the next tokens. A label enters the gradient of the layers by its row of
  the output layer alone, so where that is the token's embedding, the next guessed embedding is it;
  else a free row is searched for per place.
- Classes: the one label of one example is the negative entry of the gradient of the output bias;
  without a bias, it is the class whose gradient at random embeddings points most as the one heard
  does. Labels of several examples are searched for as logits, as DLG does.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from attacks.observation import AttackFailed, Loss
from attacks.text.victim import OPEN, TextVictim

_SURE = 100.0
"""A logit whose softmax is 1 in single precision."""
_DAMPED = 0.03
"""Rows this much smaller than the largest hardly count as summands."""
_TRIALS = 4
"""Random examples at which labels are tried."""
_STANDS_OUT = 10.0
"""Times the median entry, a rare token's probability, that a label's entry has at least."""


@dataclass(frozen=True, kw_only=True, eq=False)
class HardGuess:
    """Tokens and labels in place of embeddings and variables.

    Attributes:
        fed: What went into the model, (B, T) int64.
        variables: That stand for the labels, without doubt.
        sentence: `fed` with what was masked filled in.
        labels: Classes, (B,); None for other heads.
    """

    fed: Tensor
    variables: Tensor
    sentence: Tensor
    labels: Tensor | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction(ABC):
    """What is predicted, as far as it is known.

    Attributes:
        victim: Whose.
        places: Tokens known before the search, `OPEN` elsewhere, (B, T).
    """

    victim: TextVictim
    places: Tensor

    @abstractmethod
    def start(self, rng: torch.Generator) -> Tensor:
        """Draw variables to start from; may be empty."""

    @abstractmethod
    def loss(self, embeddings: Tensor, variables: Tensor) -> Tensor:
        """Return the client's training loss, were its batch this one."""

    @abstractmethod
    def harden(self, tokens: Tensor, variables: Tensor) -> HardGuess:
        """Make up one's mind: tokens (B, T) were read out of the embeddings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Filled(Prediction):
    """Tokens that were masked.

    Attributes:
        hidden: The labels, (M,).
        columns: The positions at which some example has a mask, (C,).
    """

    hidden: Tensor
    columns: Tensor

    def start(self, rng: torch.Generator) -> Tensor:
        """Every label may be at every place: logits (M, B * C), all but equal."""
        size = len(self.hidden), len(self.places) * len(self.columns)
        return 0.1 * torch.randn(size, generator=rng).to(self.victim.table)

    def loss(self, embeddings: Tensor, variables: Tensor) -> Tensor:
        """Return the mean cross entropy at the masked places, as they are assigned."""
        hidden_states = self.victim.model(embeddings)[:, self.columns].flatten(0, 1)
        assigned = variables.softmax(dim=1)
        logits = functional.linear(
            hidden_states, self.victim.output_weight, self.victim.output_bias
        )
        rows = self.victim.output_weight[self.hidden]
        said = functional.linear(
            hidden_states,
            rows,
            None if self.victim.output_bias is None else self.victim.output_bias[self.hidden],
        )
        normalisers = assigned.sum(dim=0) @ logits.logsumexp(dim=-1)
        return (normalisers - (assigned * said.T).sum()) / len(self.hidden)

    def harden(self, tokens: Tensor, variables: Tensor) -> HardGuess:
        """Give every label a place of its own."""
        from scipy.optimize import linear_sum_assignment  # importing it takes a while

        chances = variables.detach().softmax(dim=1)
        rows, spots = linear_sum_assignment(-chances.cpu().numpy())
        row, spot = torch.tensor(rows), torch.tensor(spots)
        example = spot.div(len(self.columns), rounding_mode="floor")
        where = self.columns.cpu()[spot % len(self.columns)]
        fed, sentence = tokens.clone(), tokens.clone()
        fed[example, where] = torch.tensor(self.victim.tokens.mask).to(tokens)
        sentence[example, where] = self.hidden[row]
        sure = torch.zeros_like(variables)
        sure[row, spot] = _SURE
        return HardGuess(fed=fed, variables=sure, sentence=sentence, labels=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Following(Prediction):
    """Each next token."""

    def start(self, rng: torch.Generator) -> Tensor:
        """Nothing, or a row of the output layer per prediction, (B, T-1, D)."""
        rows = self.victim.output_weight
        if self.victim.tied:
            return rows.new_empty(0)
        size = len(self.places), self.places.shape[1] - 1, rows.shape[1]
        return rows.std() * torch.randn(size, generator=rng).to(rows)

    def loss(self, embeddings: Tensor, variables: Tensor) -> Tensor:
        """Return the mean cross entropy of all tokens but the first."""
        hidden_states = self.victim.model(embeddings)[:, :-1]
        weight, bias = self.victim.output_weight, self.victim.output_bias
        normalisers = functional.linear(hidden_states, weight, bias).logsumexp(dim=-1)
        rows = embeddings[:, 1:] if self.victim.tied else variables
        said: Tensor = (hidden_states * rows).sum(dim=-1)
        return (normalisers - said).mean()

    def harden(self, tokens: Tensor, variables: Tensor) -> HardGuess:
        """The labels are the tokens read."""
        if not self.victim.tied:
            variables = self.victim.output_weight[tokens[:, 1:]]
        return HardGuess(fed=tokens, variables=variables, sentence=tokens, labels=None)


@dataclass(frozen=True, kw_only=True, eq=False)
class Classified(Prediction):
    """One class per example.

    Attributes:
        training_loss: Of logits and labels.
        labels: That the gradient tells, (B,); None to search for them.
    """

    training_loss: Loss
    labels: Tensor | None

    def start(self, rng: torch.Generator) -> Tensor:
        """Logits (B, K), or nothing."""
        if self.labels is not None:
            return self.victim.table.new_empty(0)
        size = len(self.places), len(self.victim.output_weight)
        return torch.randn(size, generator=rng).to(self.victim.table)

    def loss(self, embeddings: Tensor, variables: Tensor) -> Tensor:
        """Return the mean cross entropy of the classes."""
        logits = self.victim.model(embeddings)
        labels = variables.softmax(dim=-1) if self.labels is None else self.labels
        return self.training_loss(logits, labels)

    def harden(self, tokens: Tensor, variables: Tensor) -> HardGuess:
        """The likeliest classes."""
        labels, sure = self.labels, variables
        if labels is None:
            labels = variables.detach().argmax(dim=-1)
            sure = _SURE * functional.one_hot(labels, variables.shape[-1]).to(variables)
        return HardGuess(fed=tokens, variables=sure, sentence=tokens, labels=labels)


def prediction_of(victim: TextVictim, loss: Loss, *, rng: torch.Generator) -> Prediction:
    """Read off the gradient what it tells of the labels.

    Args:
        victim: With the gradient.
        loss: Of training, of classes.
        rng: Draws embeddings to try labels at.

    Raises:
        AttackFailed: Tokens were masked, and the labels cannot be read.
    """
    places = victim.known_places()
    if victim.tokens.head == "causal":
        return Following(victim=victim, places=places)
    if victim.tokens.head == "classes":
        labels = None if victim.batch_size > 1 else the_label(victim, loss, rng=rng)
        return Classified(victim=victim, places=places, training_loss=loss, labels=labels)
    named, shares = hidden_tokens(victim)
    columns = masked_columns(victim, places, named)
    most = victim.batch_size * len(columns)
    hidden = as_often(named[:most], shares[:most], most, exactly=victim.batch_size == 1)
    if victim.batch_size == 1:
        places[:, columns] = torch.tensor(victim.tokens.mask).to(places)
    return Filled(victim=victim, places=places, hidden=hidden, columns=columns)


def the_label(victim: TextVictim, loss: Loss, *, rng: torch.Generator) -> Tensor:
    """Return the class of one example, (1,)."""
    if victim.bias_gradient is not None:
        return victim.bias_gradient.argmin()[None]
    shape = (_TRIALS, 1, victim.length, victim.table.shape[1])
    drawn = victim.table.std() * torch.randn(shape, generator=rng).to(victim.table)
    likeness = torch.zeros(len(victim.output_weight))
    for embeddings in drawn:
        logits = victim.model(embeddings)
        for label in range(len(likeness)):
            one = torch.tensor([label], device=logits.device)
            found = victim.gradient(loss(logits, one), differentiable=False, again=True)
            likeness[label] += sum(
                float(functional.cosine_similarity(found[name].flatten(), heard.flatten(), dim=0))
                for name, heard in victim.target.items()
            )
    return likeness.argmax()[None].to(victim.table.device)


def hidden_tokens(victim: TextVictim) -> tuple[Tensor, Tensor]:
    """Return the labels of masked places, each once, and the shares of places they have.

    The gradient of the output bias is the mean probability of a token, less the share of places
    whose label it is.

    Raises:
        AttackFailed: The output bias was not heard, or no token stands out of its gradient.
    """
    gradient = victim.bias_gradient
    if gradient is None:
        raise AttackFailed("the labels of masked tokens are read off an output bias: none heard")
    ordered = gradient.sort()
    num = int((ordered.values < -_STANDS_OUT * gradient.abs().median()).sum())
    if not num:
        raise AttackFailed("no label of a masked token stands out of the output bias's gradient")
    return ordered.indices[:num], -ordered.values[:num]


def masked_columns(victim: TextVictim, places: Tensor, hidden: Tensor) -> Tensor:
    """Return the positions at which some example has a mask.

    The gradient of the embedding of `mask` is the sum of the gradients of embeddings at the masked
    places; a position's gradient is that sum over examples at the position. So the former is a sum
    of some of the latter. Where the output layer shares the embeddings, it adds to each row a
    combination of what it is fed with at the masked places, and so are the rows of the labels.

    Args:
        victim: With the gradients.
        places: Tokens that are known, (B, T).
        hidden: The labels.
    """
    open_places = torch.nonzero((places == OPEN).any(dim=0)).flatten()
    by_position, by_token = victim.position_gradient, victim.table_gradient
    if by_position is None or by_token is None:
        return open_places
    rows = torch.cat([by_position[open_places], by_token[hidden]]).double().cpu()
    wanted = by_token[victim.tokens.mask].double().cpu()
    if not bool(rows.any()):  # of a part that was heard, neither may be in it
        return open_places
    damping = (_DAMPED * rows.norm(dim=1).max()).square() * torch.eye(len(rows), dtype=rows.dtype)
    shares = torch.linalg.solve(rows @ rows.T + damping, rows @ wanted)[: len(open_places)]
    chosen = shares > 0.5 if bool((shares > 0.5).any()) else shares == shares.max()
    return open_places[chosen.to(open_places.device)]


def as_often(named: Tensor, shares: Tensor, most: int, *, exactly: bool) -> Tensor:
    """Return labels as often as they occur.

    Args:
        named: Each once, (N,).
        shares: Of the places, (N,), largest first.
        most: Places there may be.
        exactly: Whether there are that many.
    """
    counts = torch.ones_like(named)
    if exactly:
        while int(counts.sum()) < most:
            counts[(shares / counts).argmax()] += 1
    else:
        total = _common_denominator(shares, len(named), most)
        counts = (shares * total).round().clamp_min(1).long()
    return named.repeat_interleave(counts)


def _common_denominator(shares: Tensor, least: int, most: int) -> int:
    """Return the smallest number of places of which all shares are about whole numbers."""
    for total in range(least, most + 1):
        counts = shares * total
        if float((counts - counts.round()).abs().max()) < 0.1 and int(counts.round().min()) >= 1:
            return total
    return least
