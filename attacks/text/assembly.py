"""An encoder's sentences, put together from the tokens that lie in the span of its first attention.

Two things stand in the way, and each is undone by what the layers behind tell.

Tokens that stand at several positions of a batch, such as masks, put others into the span that are
not of it: where a stands at p and at q, and b at p, then b at q is b at p less a at p and a at q,
but for a normalisation's factor. What a position makes of itself behind the feed-forward layer is
no such sum; and a wrong sentence around it moves it about as much as it moves a token that is
certain, as the first of all.

Tokens that all sentences have, such as the first and the last, put into the deep spans what tells
one sentence from another: each token fits about as well into each sentence, until all of the
sentence is right. What a sentence leaves outside of the deep spans is about a sum over its tokens;
its terms, and how far it is from being a sum, are estimated from sentences drawn at random. The
shares of tokens whose sum leaves nothing are then a problem of least squares.
"""

import torch
from torch import Tensor

from attacks.observation import Budget
from attacks.text.evidence import Evidence

FITS = 0.0
"""Mean misfit of a sentence up to which all of it is one of the batch."""
_CHANGES = 8
_GATHERINGS = 3
_PROJECTIONS = 300
_CONTEXTS = 6
"""Random sentences in which tokens are compared with one that is certain."""
_SUSPECTS = 3
"""Tokens per example that are kept at a position."""
_DRAWN = (400, 4)
"""Sentences that a sum is estimated from: at least, and for each of its terms."""
_OPEN = 0.3
"""Share of the tokens that are drawn from all, not from those that seem right."""
_RIDGE = 1e-2


def choices(pools: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the position and the token of each choice that pools leave, (K,) each."""
    places = [torch.full_like(pool, number) for number, pool in enumerate(pools)]
    return torch.cat(places), torch.cat(pools)


def sieved(
    evidence: Evidence, pools: list[Tensor], rng: torch.Generator
) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Leave out most of the tokens that are mixtures of those of the batch.

    Returns:
        Pools; and the choices they leave where there are several, position and token, surest first.
    """
    places, tokens = choices(pools)
    sizes = torch.tensor([len(pool) for pool in pools], device=places.device)
    apart = sizes[places].float()
    most = _SUSPECTS * evidence.batch_size
    certain = next((place for place, pool in enumerate(pools) if len(pool) == 1), None)
    if certain is not None and evidence.deep and int(sizes.max()) > evidence.batch_size:
        each = torch.arange(len(tokens), device=tokens.device)
        apart = torch.zeros_like(apart)
        for _ in range(_CONTEXTS):
            rest = evidence.outside(changed(_drawn(pools, rng), places, tokens))[-1]
            apart += (rest[each, places] - rest[:, certain]).square().sum(dim=1)
    kept = torch.zeros_like(places, dtype=torch.bool)
    for place in range(len(pools)):
        own = (places == place).nonzero()[:, 0]
        kept[own[apart[own].argsort(stable=True)[:most]]] = True
    order = apart.argsort(stable=True)
    order = order[kept[order] & (sizes[places[order]] > 1)]
    seeds = list(zip(places[order].tolist(), tokens[order].tolist(), strict=True))
    return [tokens[kept & (places == place)] for place in range(len(pools))], seeds


def without(
    pools: list[Tensor], sentences: list[list[int]], common: frozenset[int]
) -> list[Tensor]:
    """Return pools without the tokens of sentences that were found, but for common ones.

    Where none would be left, all are.
    """
    found = []
    for place, pool in enumerate(pools):
        taken = {one[place] for one in sentences if len(one) == len(pools)} - common
        left = [token for token in pool.tolist() if token not in taken]
        found.append(torch.tensor(left, device=pool.device) if left else pool)
    return found


def gathered(
    evidence: Evidence, pools: list[Tensor], place: int, token: int, rng: torch.Generator
) -> Tensor:
    """Return the sentence (n,) that fits best of those that go with a certain token."""
    places, tokens = choices(pools)
    index = places == torch.arange(len(pools), device=places.device)[:, None]
    index &= (places != place) | (tokens == token)
    even = index.double() / index.sum(dim=1, keepdim=True)
    shares = even
    best, score = _drawn(pools, rng), torch.inf
    for _ in range(_GATHERINGS):
        likely = (1 - _OPEN) * shares + _OPEN * even
        picks = _picked(likely, max(_DRAWN[0], _DRAWN[1] * len(tokens)), rng)
        terms, rest = _terms(evidence, tokens[picks], picks, len(tokens))
        shares = index * _shares(terms, rest, index)
        sentence = tokens[shares.argmax(dim=1)]
        misfit = float(evidence.misfit(sentence[None]).mean())
        if misfit < score:
            best, score = sentence, misfit
        if score <= FITS:
            break
    return best


def improved(
    evidence: Evidence, pools: list[Tensor], sentence: Tensor, budget: Budget
) -> tuple[float, list[int]]:
    """Change one token after the other, always the one that helps most, while one helps.

    Returns:
        The mean misfit, and the sentence.
    """
    places, tokens = choices(pools)
    score = float(evidence.misfit(sentence[None]).mean())
    for _ in range(_CHANGES):
        if budget.spent:
            break
        others = changed(sentence, places, tokens)
        value, best = evidence.misfit(others).mean(dim=1).min(dim=0)
        if float(value) >= score - 1e-6:
            break
        score, sentence = float(value), others[best]
    return score, sentence.tolist()


def changed(sentence: Tensor, places: Tensor, tokens: Tensor) -> Tensor:
    """Return the sentence (n,) with one token changed in each of K ways, (K, n)."""
    others = sentence.repeat(len(tokens), 1)
    others[torch.arange(len(tokens), device=tokens.device), places] = tokens
    return others


def _drawn(pools: list[Tensor], rng: torch.Generator) -> Tensor:
    return torch.stack([pool[int(torch.randint(len(pool), (), generator=rng))] for pool in pools])


def _picked(likely: Tensor, number: int, rng: torch.Generator) -> Tensor:
    """Draw a choice for every position from its shares (n, K), so many times, (number, n)."""
    weights = likely.cpu().float().clamp_min(0)
    picks = torch.multinomial(weights, number, replacement=True, generator=rng)
    return picks.T.contiguous().to(likely.device)


def _terms(
    evidence: Evidence, sentences: Tensor, picks: Tensor, number: int
) -> tuple[Tensor, Tensor]:
    """Return the terms (K, F) of what sentences leave outside, and what is left without any, (F,).

    By least squares over the sentences (N, n). Each entry is divided by its standard deviation
    about the sum: those that no sum describes count for little.
    """
    outside = torch.cat([rest.flatten(1) for rest in evidence.outside(sentences)], dim=1).double()
    chosen = outside.new_zeros(len(picks), number).scatter_(1, picks, 1.0)
    means, centre = chosen.mean(dim=0), outside.mean(dim=0)
    chosen, outside = chosen - means, outside - centre
    gram = chosen.T @ chosen
    gram.diagonal().add_(_RIDGE * len(picks) / number)
    terms = torch.linalg.solve(gram, chosen.T @ outside)
    spread = (outside - chosen @ terms).square().mean(dim=0).sqrt()
    spread = spread.clamp_min(1e-3 * float(spread.mean()) + 1e-12)
    return terms / spread, (centre - means @ terms) / spread


def _shares(terms: Tensor, rest: Tensor, index: Tensor) -> Tensor:
    """Return shares (K,) of choices, at every position none negative and 1 in sum.

    They minimise |rest + shares @ terms|^2, by projected gradients with momentum.

    Args:
        terms: Of choices, (K, F).
        rest: Without any, (F,).
        index: Which choices are of which position, and allowed, (n, K).
    """
    gram = terms @ terms.T
    slope = terms @ rest
    scale = float(torch.linalg.eigvalsh(gram)[-1])
    shares = index.to(rest).T @ (1 / index.sum(dim=1).to(rest))
    ahead, before = shares, 1.0
    for _ in range(_PROJECTIONS):
        wanted = ahead - (gram @ ahead + slope) / scale
        new = _projected(wanted, index)
        after = (1 + (1 + 4 * before**2) ** 0.5) / 2
        if float((ahead - new) @ (new - shares)) > 0:  # uphill: forget the momentum
            after = 1.0
        ahead = new + (before - 1) / after * (new - shares)
        shares, before = new, after
    return shares


def _projected(values: Tensor, index: Tensor) -> Tensor:
    """Return the nearest shares to values (K,), for choices that `index` (n, K) groups."""
    table = values.expand(index.shape).masked_fill(~index, -torch.inf)
    ordered = table.sort(dim=1, descending=True).values
    counts = torch.arange(1, values.shape[0] + 1, device=values.device)
    total = ordered.masked_fill(ordered == -torch.inf, 0).cumsum(dim=1)
    cut = (total - 1) / counts
    number = ((ordered > cut) & (ordered > -torch.inf)).sum(dim=1, keepdim=True)
    cut = cut.gather(1, number - 1)
    kept = (table - cut).clamp_min(0)
    return kept.masked_fill(~index, 0).sum(dim=0)
