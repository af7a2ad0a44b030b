"""What the server does with an experiment's chain of defenses."""

from collections.abc import Mapping

from flwr.serverapp.strategy import Strategy

from fedsim.defenses import Defense, ServerDefense


def defended(strategy: Strategy, chain: Mapping[str, Defense], seed: int) -> Strategy:
    """Return what aggregates: `strategy`, with the chain's defenses at the server around it."""
    for title, defense in chain.items():
        if isinstance(defense, ServerDefense):
            strategy = defense.around(strategy, seed, title)
    return strategy
