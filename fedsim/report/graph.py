"""A graph of peers as a picture, drawn with matplotlib's own objects."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import PathCollection
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, FancyArrowPatch, Patch, Rectangle
from matplotlib.path import Path

from fedsim.errors import ConfigError
from fedsim.files import replace_bytes
from fedsim.report.charts import LOOK, dot, inks, png, svg
from fedsim.report.palette import LIGHT, colour_of
from fedsim.topologies.graph import PeerGraph
from fedsim.topologies.layout import positions
from fedsim.topologies.network import PeerNetwork

Link = tuple[int, int]
Places = Mapping[int, np.ndarray]

SHARE, CROWD = 0.72, 0.32
"""A node across, at most: of the way to the nearest other, and of the room that each has."""
WIDEST, NARROWEST = 34.0, 7.0
"""A node across, in pixels."""
_MARGIN, _BAR, _LINE = 10.0, 74.0, 22.0


@dataclass(frozen=True, kw_only=True)
class Shades:
    """Peers coloured by a value, with a bar that says which.

    Attributes:
        title: What the value is, with its unit.
        values: By peer; None, or no value, is drawn grey.
        low: Value of the palest colour; unset means the least there is.
        high: Value of the strongest colour; unset means the most there is.
        colour: Name of the strongest, in the palette.
    """

    title: str
    values: Mapping[int, float | None]
    low: float | None = None
    high: float | None = None
    colour: str = "c0"

    def limits(self) -> tuple[float, float]:
        """Return the values at both ends of the bar."""
        there = [value for value in self.values.values() if value is not None]
        low = min(there, default=0.0) if self.low is None else self.low
        high = max(there, default=1.0) if self.high is None else self.high
        return (low, high) if high > low else (low, low + 1.0)


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What a picture of a graph shows besides the graph.

    Attributes:
        shades: Peers coloured by a value.
        kinds: Peers coloured by a word, which the legend explains; if not by a value.
        adversaries: Peers drawn as squares with a strong border.
        heard: Links drawn strongly, either way round.
        labels: What stands in each node; its number, where nothing is said.
        adversary_name: Of `adversaries`, in the legend.
        heard_name: Of `heard`, in the legend.
    """

    shades: Shades | None = None
    kinds: Mapping[int, str] = field(default_factory=dict)
    adversaries: Collection[int] = ()
    heard: Collection[Link] = ()
    labels: Mapping[int, str] = field(default_factory=dict)
    adversary_name: str = "adversary"
    heard_name: str = "link it hears"


def draw_graph(
    graph: PeerGraph,
    positions: Mapping[int, tuple[float, float]],
    *,
    colours: Mapping[str, str],
    marks: Marks | None = None,
    width: int = 520,
) -> Figure:
    """Return the picture of a graph.

    Args:
        graph: Arrows show where the links of an `nx.DiGraph` lead.
        positions: (across, upwards) of each node, as `fedsim.topologies.layout` gives them.
        colours: A scheme of the palette.
        marks: What else it shows.
        width: Of the picture, in pixels.
    """
    marks = marks or Marks()
    places, across = _fitted(positions, width - (_BAR if marks.shades else 0))
    legend = list(_legend(marks, colours).items())
    columns = max(1, int(width / (44 + 8 * max((len(name) for name, _ in legend), default=1))))
    rows = -(-len(legend) // columns)
    foot = max(place[1] for place in places.values()) + WIDEST / 2 + _MARGIN
    foot = max(foot, 8 * _LINE) if marks.shades else foot
    height = foot + _LINE * rows
    with style.context([LOOK, inks(colours)], after_reset=True):
        figure = Figure(figsize=(width / 72, height / 72))
        area = figure.add_axes((0, 0, 1, 1), xlim=(0, width), ylim=(0, height))
        area.set_axis_off()
        _draw_links(area, graph, places, across, marks, colours)
        _draw_nodes(area, graph, places, across, marks, colours)
        if legend:
            figure.legend(
                [mark for _, mark in legend],
                [name for name, _ in legend],
                loc="upper left",
                bbox_to_anchor=(_MARGIN / width, 1 - 4 / height),
                ncols=columns,
            )
        if marks.shades:
            _draw_bar(figure, marks.shades, width, height, foot, colours)
    return figure


def draw_network(
    network: PeerNetwork,
    server_round: int,
    *,
    colours: Mapping[str, str],
    marks: Marks | None = None,
    width: int | None = None,
) -> Figure:
    """Return the picture of the links of one round, laid out as suits the topology.

    Args:
        network: Of peers.
        server_round: From 1.
        colours: A scheme of the palette.
        marks: What else it shows.
        width: Of the picture, in pixels; None for what so many peers need.
    """
    graph = network.graph(server_round)
    places = positions(network.name, graph)
    room = width or (520 if len(graph) <= 40 else 800)
    return draw_graph(graph, places, colours=colours, marks=marks, width=room)


def save_network(network: PeerNetwork, server_round: int, path: FilePath) -> None:
    """Draw the links of one round into a file.

    Raises:
        ConfigError: Its name ends neither with .png nor with .svg.
    """
    formats = {".png": png, ".svg": svg}
    write = formats.get(path.suffix.lower())
    if write is None:
        raise ConfigError(f"a drawing ends with {' or '.join(formats)}, got '{path}'")
    replace_bytes(path, write(draw_network(network, server_round, colours=LIGHT)))


def _fitted(
    positions: Mapping[int, tuple[float, float]], width: float
) -> tuple[dict[int, np.ndarray], float]:
    """Return places in pixels from the lower left corner, and how wide a node may be."""
    places = np.array(list(positions.values()), dtype=float)
    places -= places.min(axis=0)
    room = width - 2 * _MARGIN - WIDEST
    places *= room / max(1e-9, float(places.max()))
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.fill_diagonal(apart, np.inf)
    most = min(SHARE * apart.min(), CROWD * room / len(places) ** 0.5)
    across = float(np.clip(most, NARROWEST, WIDEST))
    places += _MARGIN + WIDEST / 2
    places[:, 0] += (room - (places[:, 0].max() - places[:, 0].min())) / 2
    return dict(zip(positions, places, strict=True)), across


def _draw_links(
    area: Axes,
    graph: PeerGraph,
    places: Places,
    across: float,
    marks: Marks,
    colours: Mapping[str, str],
) -> None:
    """Draw links, those that are heard above the others; around nodes that are in the way."""
    heard = {frozenset(link) for link in marks.heard}
    everything = np.array(list(places.values()))
    centre = (everything.min(axis=0) + everything.max(axis=0)) / 2
    thin = float(np.clip(12 / max(1, graph.number_of_edges()) ** 0.5, 0.4, 1.5))
    pale = float(np.clip(8 / max(1, graph.number_of_edges()) ** 0.5, 0.1, 0.6))
    for strong in (False, True):
        colour = colours["warn" if strong else "muted"]
        wide, alpha = (max(1.5, 1.6 * thin), 1.0) if strong else (thin, pale)
        paths = []
        for one, other in graph.edges:
            if (frozenset((one, other)) in heard) != strong:
                continue
            start, end = places[one], places[other]
            bulge = _bulge(start, end, everything, across)
            if not graph.is_directed():
                paths.append(_curve(start, end, bulge, centre))
                continue
            if graph.has_edge(other, one):  # beside the one that leads back
                bulge = max(bulge, 0.06 * float(np.linalg.norm(end - start)))
            arrow = FancyArrowPatch(
                path=_shortened(_curve(start, end, bulge, centre), across / 2 + 1),
                arrowstyle="-|>",
                mutation_scale=float(np.clip(across / 2.5, 5, 11)),
                color=colour,
                linewidth=wide,
                alpha=alpha,
                zorder=1 + strong,
            )
            area.add_patch(arrow)
        lines = PathCollection(paths, facecolors="none", edgecolors=colour, linewidths=wide)
        lines.set(alpha=alpha, zorder=1 + strong, gid="heard" if strong else "links")
        area.add_collection(lines)


def _bulge(start: np.ndarray, end: np.ndarray, places: np.ndarray, across: float) -> float:
    """Return how far a link must leave its straight line to pass the nodes that lie on it."""
    length = max(1e-9, float(np.linalg.norm(end - start)))
    along = (places - start) @ (end - start) / length
    beside = np.abs((places - start) @ np.array([start[1] - end[1], end[0] - start[0]])) / length
    in_the_way = (along > across / 2) & (along < length - across / 2) & (beside < 1)
    return across if in_the_way.any() else 0.0


def _curve(start: np.ndarray, end: np.ndarray, bulge: float, centre: np.ndarray) -> Path:
    """Return a link that leaves its straight line by so much, towards the centre of the picture."""
    if not bulge:
        return Path([start, end])
    middle = (start + end) / 2
    aside = np.array([start[1] - end[1], end[0] - start[0]]) / np.linalg.norm(end - start)
    if aside @ (centre - middle) < -1:
        aside = -aside
    top = middle + 2 * bulge * aside  # a parabola comes half as far
    return Path([start, top, end], [Path.MOVETO, Path.CURVE3, Path.CURVE3])


def _shortened(path: Path, gap: float) -> Path:
    """Return a link that ends so far before the middle of its nodes."""
    points = np.array(path.vertices, dtype=float)
    for end, towards in ((0, 1), (-1, -2)):
        way = points[towards] - points[end]
        points[end] += way * min(0.45, gap / max(1e-9, float(np.linalg.norm(way))))
    return Path(points, path.codes)


def _draw_nodes(
    area: Axes,
    graph: PeerGraph,
    places: Places,
    across: float,
    marks: Marks,
    colours: Mapping[str, str],
) -> None:
    fills = _fills(graph, marks, colours)
    for peer in graph:
        x, y = places[peer]
        node: Patch
        if peer in marks.adversaries:
            node = Rectangle((x - across / 2, y - across / 2), across, across)
            node.set(edgecolor=colours["warn"], linewidth=max(1.5, across / 12))
        else:
            node = Circle((x, y), across / 2)
            node.set(edgecolor=colours["paper"], linewidth=1)
        node.set(facecolor=fills[peer], zorder=3, gid=f"peer-{peer}")
        area.add_patch(node)
        said = marks.labels.get(peer, str(peer))
        size = min(0.5 * across, 1.3 * across / max(1, len(said)), 12)
        area.text(
            x,
            y,
            said,
            ha="center",
            va="center_baseline",
            fontsize=max(4.0, size),
            color=_readable_on(fills[peer], colours),
            zorder=4,
        )


def _fills(graph: PeerGraph, marks: Marks, colours: Mapping[str, str]) -> dict[int, str]:
    """Return the colour of every node."""
    if marks.shades:
        scale = _scale(marks.shades, colours)
        values = {peer: marks.shades.values.get(peer) for peer in graph}
        return {
            peer: colours["grid"]
            if value is None
            else to_hex(tuple(scale.to_rgba(np.array(value))))
            for peer, value in values.items()
        }
    by_kind = _kinds(marks, colours)
    plain = colours[colour_of(1)] if not marks.kinds else colours["grid"]
    return {peer: by_kind[marks.kinds[peer]] if peer in marks.kinds else plain for peer in graph}


def _kinds(marks: Marks, colours: Mapping[str, str]) -> dict[str, str]:
    """Return the colour of every word, in the order in which peers have them."""
    words = dict.fromkeys(marks.kinds[peer] for peer in sorted(marks.kinds))
    return {word: colours[colour_of(1 + place)] for place, word in enumerate(words)}


def _scale(shades: Shades, colours: Mapping[str, str]) -> ScalarMappable:
    strong = to_rgb(colours[shades.colour])
    paper = to_rgb(colours["paper"])
    pale = tuple(0.1 * a + 0.9 * b for a, b in zip(strong, paper, strict=True))
    return ScalarMappable(
        Normalize(*shades.limits(), clip=True),
        LinearSegmentedColormap.from_list("shades", [pale, strong]),
    )


def _readable_on(fill: str, colours: Mapping[str, str]) -> str:
    """Return ink or paper, whichever stands out more."""

    def light(colour: str) -> float:
        red, green, blue = to_rgb(colour)
        return 0.299 * red + 0.587 * green + 0.114 * blue

    return max(
        (colours["ink"], colours["paper"]), key=lambda colour: abs(light(colour) - light(fill))
    )


def _legend(marks: Marks, colours: Mapping[str, str]) -> dict[str, Line2D]:
    legend = {word: dot(colour) for word, colour in _kinds(marks, colours).items()}
    if marks.shades:
        legend = {}
    if marks.adversaries:
        square = dot(colours["warn"], "s")
        square.set_markerfacecolor("none")
        legend[marks.adversary_name] = square
    if marks.heard:
        legend[marks.heard_name] = Line2D([], [], color=colours["warn"])
    return legend


def _draw_bar(
    figure: Figure,
    shades: Shades,
    width: float,
    height: float,
    foot: float,
    colours: Mapping[str, str],
) -> None:
    """Say beside the graph which colour is which value."""
    tall = min(200.0, foot - 3 * _LINE)
    low = (foot - _LINE - tall) / 2 + 4
    place = (1 - (_BAR - 14) / width, low / height, 12 / width, tall / height)
    bar = figure.colorbar(_scale(shades, colours), cax=figure.add_axes(place))
    bar.ax.tick_params(size=0)
    bar.ax.yaxis.set_major_formatter("{x:g}")
    bar.outline.set(visible=False)
    figure.text(
        1 - _MARGIN / width, (low + tall + 8) / height, shades.title, ha="right", va="bottom"
    )
