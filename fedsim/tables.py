"""What commands show in tables."""

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:  # a command loads what it needs itself
    from fedsim.exposure import Exposure
    from fedsim.stages.gauge import Gauge
    from fedsim.topologies.network import PeerNetwork

UNKNOWNS = {"image": "pixels", "text": "tokens", "table": "numbers"}
"""What an input consists of."""


def gauge_tables(found: "Gauge") -> RenderableType:
    """Return what `fedsim gauge` prints."""
    head = (
        f"{found.experiment}, {found.threat}: {found.num_unknowns:,} unknown "
        f"{UNKNOWNS[found.modality]} behind an "
        f"update of {found.num_equations:,} entries (batch of {found.batch_size})"
    )
    parts: list[RenderableType] = [Text(head, style="bold"), Text("")]
    if found.ceilings:
        parts.append(_ceilings(found))
    else:
        parts.append(Text(f"no ceiling: {found.obstacle}"))
    parts.append(_attacks(found))
    return Group(*parts)


def _ceilings(found: "Gauge") -> Table:
    table = _table("What the best attacker could expect, by noise on the update")
    for heading in ("noise / rms", "noise", "PSNR, dB", "lowest", "highest", "determined"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in found.ceilings:
        table.add_row(
            f"{row.relative_noise:g}",
            f"{row.noise:.1e}",
            *(f"{value:.1f}" for value in row.psnr_db),
            f"{row.determined:.0%}",
        )
    looked_at = f"{found.clients} clients"
    if found.clients_per_update > 1:
        looked_at = f"means of {found.clients_per_update} clients in {found.clients} rounds"
    table.caption = f"{looked_at}, labels known, untrained weights; 12.0 dB is guessing"
    if found.modality == "table":
        table.caption = f"{looked_at}, labels known, untrained weights; of rows as they are encoded"
    return table


def _attacks(found: "Gauge") -> Table:
    table = _table("Which attacks could be run")
    table.add_column("attack", no_wrap=True)
    table.add_column("", no_wrap=True)
    table.add_column("why not", overflow="fold")
    for one in found.attacks:
        table.add_row(one.name, "yes" if one.applies else "no", one.why)
    return table


def topology_table(network: "PeerNetwork", server_round: int) -> RenderableType:
    """Return what `fedsim topology` prints."""
    facts = network.facts(server_round)
    table = _table(f"{network.name}, {facts.num_peers} peers")
    table.add_column("fact", no_wrap=True)
    table.add_column("", no_wrap=True)
    degree = f"{facts.min_degree}"
    if facts.max_degree > facts.min_degree:
        degree += f" to {facts.max_degree}, mean {facts.mean_degree:.2f}"
    rows = {
        "links": f"{facts.num_links}{', one way' if facts.directed else ''}",
        "peers that one hears": degree,
        "diameter": "none: not connected" if facts.diameter is None else str(facts.diameter),
        "bipartite": "yes" if facts.bipartite else "no",
        "mixing": network.mixing_name,
        "doubly stochastic": "yes" if facts.doubly_stochastic else "no: rows alone sum to 1",
        "second eigenvalue": f"{facts.second_eigenvalue:.6f}",
        "spectral gap": f"{facts.spectral_gap:.6f}",
    }
    if network.varies:
        rows = {"round": f"{server_round}, others have other links", **rows}
    for fact, value in rows.items():
        table.add_row(fact, value)
    return table


def exposure_table(found: "Exposure") -> Table:
    """Return what is exposed by distance, over all rounds and in the first."""
    rounds, num_peers = found.shares.shape
    table = _table(f"exposed before any attack: {num_peers} peers, {rounds} rounds")
    table.add_column("links away", no_wrap=True)
    for heading in ("peers", "in full, once", "in part, once", "updates in full", "in round 1"):
        table.add_column(heading, justify="right")
    for distance, peers in found.by_distance():
        shares = found.shares[:, peers]
        full = shares == 1
        table.add_row(
            str(distance) if distance > 0 else "never heard",
            str(len(peers)),
            str(int(full.any(axis=0).sum())),
            str(int(((shares > 0).any(axis=0) & ~full.any(axis=0)).sum())),
            f"{int(full.sum())} of {full.size}",
            f"{int(full[0].sum())} of {len(peers)}",
        )
    return table


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_justify="left",
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
