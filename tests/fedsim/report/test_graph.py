"""Pictures of graphs: every peer and link is there, and what is marked can be told."""

import re
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, Patch, Rectangle
from PIL import Image

from fedsim.errors import ConfigError
from fedsim.report.charts import svg
from fedsim.report.graph import WIDEST, Marks, Shades, draw_graph, draw_network, save_network
from fedsim.report.palette import DARK, LIGHT
from fedsim.topologies.layout import positions
from fedsim.topologies.network import PeerNetwork

RING = PeerNetwork(name="ring", num_peers=6)


def drawn(network: PeerNetwork = RING, marks: Marks | None = None) -> Figure:
    return draw_network(network, 1, colours=LIGHT, marks=marks)


def nodes(figure: Figure) -> dict[int, Patch]:
    found: dict[int, Patch] = {}
    for patch in figure.axes[0].patches:
        if isinstance(patch, Circle | Rectangle):
            found[int(str(patch.get_gid()).removeprefix("peer-"))] = patch
    return found


def links(figure: Figure, name: str) -> PathCollection:
    (found,) = (one for one in figure.axes[0].collections if one.get_gid() == name)
    assert isinstance(found, PathCollection)
    return found


def middle(node: Patch) -> np.ndarray:
    box = node.get_window_extent()
    return np.array([(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2])


@pytest.mark.parametrize(
    ("name", "num_peers"),
    [
        ("ring", 2),
        ("line", 31),
        ("star", 9),
        ("complete", 12),
        ("torus", 16),
        ("grid", 12),
        ("hypercube", 16),
        ("tree", 15),
        ("watts-strogatz", 20),
        ("erdos-renyi", 30),
        ("random-regular", 60),
    ],
)
def test_every_peer_and_every_link_is_drawn_inside_the_picture_and_apart(
    name: str, num_peers: int
) -> None:
    network = PeerNetwork(name=name, num_peers=num_peers)

    figure = drawn(network)

    found = nodes(figure)
    assert sorted(found) == list(range(num_peers))
    assert [text.get_text() for text in figure.axes[0].texts] == [str(n) for n in sorted(found)]
    assert len(links(figure, "links").get_paths()) == len(network.links(1))
    boxes = [found[peer].get_window_extent() for peer in sorted(found)]
    width, height = figure.get_size_inches() * 72
    assert all(box.x0 > 0 and box.y0 > 0 and box.x1 < width and box.y1 < height for box in boxes)
    for one in range(num_peers):
        for other in range(one):
            apart = np.linalg.norm(middle(found[one]) - middle(found[other]))
            assert apart > boxes[one].width


@pytest.mark.parametrize("name", ["random-regular", "erdos-renyi", "tree"])
def test_the_numbers_of_a_hundred_peers_can_be_read(name: str) -> None:
    figure = drawn(PeerNetwork(name=name, num_peers=100))

    widths = [node.get_window_extent().width for node in nodes(figure).values()]
    assert min(widths) > 14  # pixels: room for two digits of 7


def test_links_around_a_torus_do_not_run_through_other_peers_nor_out_of_the_picture() -> None:
    network = PeerNetwork(name="torus", num_peers=16)

    figure = drawn(network)

    width, height = figure.get_size_inches() * 72
    places = {peer: middle(node) for peer, node in nodes(figure).items()}
    bent = [
        path
        for path in links(figure, "links").get_paths()
        if np.asarray(path.vertices).shape == (3, 2)
    ]
    assert len(bent) == 8  # one around each row and each column
    for path in bent:
        start, top, end = np.asarray(path.vertices)
        steps = np.linspace(0, 1, 50)[:, None]
        curve = (1 - steps) ** 2 * start + 2 * steps * (1 - steps) * top + steps**2 * end
        assert (curve >= 0).all()
        assert (curve <= [width, height]).all()
        for place in places.values():
            if min(np.linalg.norm(place - start), np.linalg.norm(place - end)) > 1:
                assert np.linalg.norm(curve - place, axis=1).min() > WIDEST / 2


def test_peers_are_as_strong_in_colour_as_their_value_and_grey_without_one() -> None:
    values = {0: 5.0, 1: 10.0, 2: 20.0, 3: None}

    figure = drawn(marks=Marks(shades=Shades(title="PSNR, dB", values=values, low=0, high=20)))

    fills = {peer: to_hex(node.get_facecolor()) for peer, node in nodes(figure).items()}
    assert fills[2] == LIGHT["c0"]
    assert fills[3] == fills[4] == LIGHT["grid"]
    blues = [int(fills[peer][5:], 16) for peer in (0, 1, 2)]
    assert blues == sorted(blues, reverse=True)
    texts = re.findall(r"<text[^>]*>([^<]*)", svg(figure).decode())
    assert "PSNR, dB" in texts
    assert {"0", "20"} <= set(texts)


def test_peers_are_coloured_by_word_with_a_legend() -> None:
    kinds = {0: "recovered", 1: "recovered", 2: "safe"}

    figure = drawn(marks=Marks(kinds=kinds))

    fills = {peer: to_hex(node.get_facecolor()) for peer, node in nodes(figure).items()}
    assert fills[0] == fills[1] != fills[2] != fills[3] == LIGHT["grid"]
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["recovered", "safe"]


def test_the_adversary_is_a_square_and_what_it_hears_is_drawn_strongly() -> None:
    marks = Marks(adversaries=[2], heard=[(2, 1), (3, 2)], adversary_name="who listens")

    figure = drawn(marks=marks)

    assert {peer for peer, node in nodes(figure).items() if isinstance(node, Rectangle)} == {2}
    assert len(links(figure, "heard").get_paths()) == 2
    assert len(links(figure, "links").get_paths()) == 4
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["who listens", "link it hears"]


def test_links_that_lead_one_way_are_arrows() -> None:
    figure = drawn(PeerNetwork(name="one-peer-exponential", num_peers=6))

    arrows = [one for one in figure.axes[0].patches if isinstance(one, FancyArrowPatch)]
    assert len(arrows) == 6


def test_labels_replace_numbers() -> None:
    figure = drawn(marks=Marks(labels={0: "me"}))

    assert [text.get_text() for text in figure.axes[0].texts] == ["me", "1", "2", "3", "4", "5"]


@pytest.mark.parametrize("colours", [LIGHT, DARK])
def test_the_same_graph_is_the_same_picture(colours: dict[str, str]) -> None:
    network = PeerNetwork(name="random-regular", num_peers=20)

    one, other = (svg(draw_network(network, 1, colours=colours)) for _ in range(2))

    assert one == other


def test_a_graph_in_parts_can_be_drawn() -> None:
    graph = nx.empty_graph(4)

    figure = draw_graph(graph, positions("edges", graph), colours=LIGHT)

    assert len(nodes(figure)) == 4


def test_a_drawing_is_saved_as_its_name_ends(tmp_path: Path) -> None:
    save_network(RING, 1, tmp_path / "ring.png")
    save_network(RING, 1, tmp_path / "ring.svg")

    with Image.open(tmp_path / "ring.png") as image:
        assert image.width == 2 * 520
    assert (tmp_path / "ring.svg").read_text().lstrip().startswith("<?xml")
    with pytest.raises(ConfigError, match=r"ends with .png or .svg, got .*ring.pdf"):
        save_network(RING, 1, tmp_path / "ring.pdf")
