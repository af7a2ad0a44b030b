"""A run without a server as its page shows it: who heard whom, and what that told about whom."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from statistics import median
from typing import TYPE_CHECKING

from fedsim.files import Record
from fedsim.quality import Scale, baseline, measured, values
from fedsim.reach import Reach, number_of, reach_of
from fedsim.report.charts import over_rounds
from fedsim.report.curves import At, Curve, Panel
from fedsim.report.graph import Marks, Shades, draw_graph
from fedsim.report.rendering import Chart, Draw, chart
from fedsim.report.wording import count, percent
from fedsim.schemas.peers import DistanceLeakage, PeersSummary
from fedsim.stages.among_peers import among_peers, first_round, how_of
from fedsim.topologies.layout import positions

if TYPE_CHECKING:  # which shows this
    from fedsim.report.run_view import RunView

GRAPH = 620
"""Width of the picture of the graph, in pixels."""
MOST_DB = 60.0
"""The strongest colour of a peer: an image is long recognised."""
WAYS = {
    "heard": "as it was sent",
    "exact": "told apart exactly",
    "estimated": "estimated",
}
"""How an update was got hold of, for people."""


@dataclass(frozen=True)
class PeersView:
    """What a page says of a run without a server.

    Attributes:
        view: The run.
        reach: Where its adversary sat.
        found: What came out.
    """

    view: "RunView"
    reach: Reach
    found: PeersSummary

    @property
    def attack(self) -> str | None:
        """The attack that the page goes by: the strongest."""
        return None if self.view.strongest is None else self.view.strongest.attack

    @cached_property
    def first(self) -> int:
        """The first round in which the adversary listened; graph and facts are of it."""
        return first_round(self.reach)

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The facts of the graph, in words."""
        facts = self.reach.topology["facts"]
        low, high = facts["min_degree"], facts["max_degree"]
        each = (
            str(low) if low == high else f"{low} to {high}, {facts['mean_degree']:.1f} on average"
        )
        diameter = facts["diameter"]
        return [
            ("peers", str(facts["num_peers"])),
            ("links", f"{facts['num_links']}{', in one direction each' * facts['directed']}"),
            ("neighbours of each", each),
            ("longest way", "not connected" if diameter is None else count(diameter, "link")),
            ("mixing weights", self.reach.topology["mixing"]),
            ("spectral gap", f"{facts['spectral_gap']:.3g}"),
        ]

    @property
    def other_rounds(self) -> str:
        """What is to be said of a graph that changes; empty for one that does not."""
        if not self.reach.topology["varies"]:
            return ""
        return f"The graph changes from round to round; that of round {self.first} is drawn."

    @property
    def hears(self) -> str:
        """What the adversary hears, in a sentence."""
        if self.reach.deaf:
            return "The adversary listened in no round."
        heard, links = self.reach.heard(self.first), self.reach.links(self.first)
        part = f"{len(heard)} of {count(len(links), 'link')}"
        own = self.reach.own
        if own:
            return f"The adversary is {_named(own)}, and hears {part}."
        if self.reach.hears_all:
            return f"The adversary hears every one of {count(len(links), 'link')}."
        return f"The adversary taps {part}."

    # leakage

    @property
    def scale(self) -> Scale:
        """On which leakage is measured."""
        return self.view.scale

    @cached_property
    def best(self) -> dict[int, float]:
        """The closest guess at any example of each peer, by the strongest attack."""
        found: dict[int, float] = {}
        for score in self.view.scores:
            if score["attack"] == self.attack:
                peer = number_of(score["victim"])
                for value in values(score):
                    found[peer] = max(value, found.get(peer, value))
        return found

    @cached_property
    def graph(self) -> Chart:
        """The graph, with the adversary, what it hears, and what it got of whom."""
        return chart(self.draw, self._graph_label, wide=GRAPH)

    @property
    def draw(self) -> Draw:
        """What draws the graph."""
        graph = self.reach.graph(self.first)
        scale, best = self.scale, self.view.strongest
        data_mean = None if best is None else scale.shown(baseline(best))
        most = scale.most or MOST_DB
        shown = {peer: min(scale.factor * value, most) for peer, value in self.best.items()}
        usual = scale.most or 40.0
        shades = Shades(
            title=f"best {scale.axis}",
            values=shown,
            low=min(data_mean or 0.0, *shown.values(), most) if shown else 0.0,
            high=most if max(shown.values(), default=0.0) > usual else usual,
        )
        marks = Marks(
            shades=shades if self.best else None,
            adversaries=self.reach.own,
            heard=self.reach.heard(self.first),
        )
        places = positions(self.reach.topology["name"], graph)
        return partial(draw_graph, graph, places, marks=marks)

    @property
    def _graph_label(self) -> str:
        said = self.scale.written
        each = [f"peer {peer}: {said(value)}" for peer, value in sorted(self.best.items())]
        got = f"Best {self.scale.noun} of each by {self.attack}: {', '.join(each)}." if each else ""
        name = self.reach.topology["name"]
        return f"{name} of {self.reach.num_peers} peers. {self.hears} {got}".strip()

    @property
    def distances(self) -> list[DistanceLeakage]:
        """What the strongest attack got, by distance."""
        return [row for row in self.found.by_distance if row.attack == self.attack]

    def by_distance(self, series: int = 0, label: str = "") -> Curve:
        """Median likeness of the strongest attack by distance, from worst to best, as shown."""
        factor = self.scale.factor
        points = [
            At(
                round=row.distance,
                value=factor * got.median,
                low=factor * got.worst,
                high=factor * got.best,
            )
            if (got := measured(row))
            else At(round=row.distance, value=None)
            for row in self.distances
            if row.distance is not None
        ]
        return Curve(label=label or self.attack or "", series=series, points=points)

    @cached_property
    def distance_chart(self) -> Chart | None:
        """Leakage by distance; None for fewer than two distances."""
        curve = self.by_distance()
        best = self.view.strongest
        if best is None or len(curve.points) < 2:
            return None
        scale, mean, rules = self.scale, baseline(best), dict[str, float]()
        if mean is not None:
            rules = {f"data mean {scale.written(mean)}": scale.factor * mean}
        panel = Panel(title=scale.axis, curves=[curve], height=170, rules=rules, most=scale.most)
        return chart(
            partial(over_rounds, [panel], along="links from the adversary"),
            f"{scale.title[:1].upper()}{scale.title[1:]} of {curve.label} by distance from the "
            "adversary. The table has the values.",
        )

    @cached_property
    def _observations(self) -> list[Record]:
        return self.view.run.observation_records()

    # rounds

    def round_by_round(self) -> list[Record]:
        """Utility, traffic and what was got hold of: a line per round."""
        ways: dict[int, list[str]] = {}
        for one in self._observations:
            ways.setdefault(one["round"], []).append(how_of(one))
        scores: dict[int, list[float]] = {}
        for score in self.view.scores:
            if score["attack"] == self.attack:
                scores.setdefault(score["round"], []).extend(values(score))
        return [
            {
                "round": record["round"],
                "accuracy": record.get("accuracy"),
                "peers": sorted(v for v in record.get("peer_accuracy", []) if v is not None),
                "consensus": record.get("consensus_distance"),
                "bytes": record.get("bytes_between"),
                "failed": record.get("failed", []),
                "ways": {
                    WAYS[how]: ways.get(record["round"], []).count(how)
                    for how in WAYS
                    if how in ways.get(record["round"], [])
                },
                "value": median(scores[record["round"]]) if scores.get(record["round"]) else None,
            }
            for record in self.reach.rounds
        ]

    @property
    def peer_range(self) -> str:
        """Accuracy of the worst and the best peer; empty where it was not measured."""
        one = self.found.peer_accuracy
        return "" if one is None else f"{percent(one.worst)} to {percent(one.best)}"

    @property
    def ways(self) -> Mapping[str, str]:
        """How an update was got hold of, for people."""
        return WAYS


def peers_view(view: "RunView") -> PeersView | None:
    """Return what a page says of a run without a server; None for any other."""
    reach, found = reach_of(view.run), among_peers(view.run)
    return None if reach is None or found is None else PeersView(view, reach, found)


def _named(peers: Sequence[int]) -> str:
    numbers = ", ".join(map(str, peers))
    return f"peer {numbers}" if len(peers) == 1 else f"peers {numbers} together"
