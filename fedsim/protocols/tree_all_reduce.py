"""Tree all-reduce: sums of gradients climb a tree, and their total comes down again.

The reduction and broadcast of MPI (Thakur et al., 2005, https://doi.org/10.1177/1094342005051521).
A leaf sends its raw gradient to its parent; a parent sends sums over the peers below it.
"""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from fedsim.protocols.peer_protocol import Here, Links, MessageKind, Network, Parcel, Post, State
from fedsim.protocols.summing import begun, chunk_of, ended, roll_call


@dataclass(frozen=True, kw_only=True)
class TreeAllReduce:
    """Sum gradients up to a root, send the total down, and step along the mean.

    The root is the peer of the smallest number. Hop 0 is a roll call: everybody computes its
    gradient and says nothing. Where members fail, the others begin again at hop 1, from the
    gradients that they kept: a member is then the child of its nearest ancestor that is left, and
    those that have none are children of the smallest among them, which is the root.

    A peer adds the sums of its children to its own gradient in order of their numbers. The total is
    computed once, so all members end with the same bits.
    """

    needs_gradient: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    collective: ClassVar[bool] = True
    delivers_late: ClassVar[bool] = False
    needs_same_start: ClassVar[bool] = True
    kinds: ClassVar[frozenset[MessageKind]] = frozenset(
        {MessageKind.PARTIAL_SUM, MessageKind.TOTAL}
    )

    def check(self, network: Network) -> None:
        """Refuse what is no tree.

        Raises:
            ValueError: There are too many links, or too few, or they change.
        """
        links = network.edges(1)
        is_tree = len(_depths(tuple(links))) == network.num_peers == len(links) // 2 + 1
        if network.directed or network.varies or not is_tree:
            raise ValueError(
                f"tree-all-reduce needs a tree, N-1 links that join all N peers, always the same, "
                f"got '{network.name}'; set topology.name to 'tree', 'line' or 'star'"
            )

    def num_hops(self, num_members: int, links: Links = ()) -> int:
        """A roll call, and the depth of the tree up and down; without links, at most.

        A peer that is left alone has one idle hop, in which it steps.
        """
        return 1 + max(1, 2 * _height(num_members, tuple(links)))

    def begin(self, start: Tensor) -> State:
        """Remember the model."""
        return {"model": start}

    def speak(self, state: State, at: Here) -> tuple[State, Sequence[Post]]:
        """Hop 0: compute the gradient. Later: once up with a sum, and once down with the total."""
        if at.hop == 0:
            return roll_call(state, at), []
        if at.hop == 1:
            state = begun(state)
        tree, height = _tree_of(at)
        depth = tree.depth[at.me]
        if at.hop == height - depth + 1 and depth > 0:
            to: tuple[int, ...] = (tree.parent[at.me],)
            kind, members = MessageKind.PARTIAL_SUM, tree.below(at.me)
        elif at.hop == height + depth + 1 and tree.children[at.me]:
            to = tree.children[at.me]
            kind, members = MessageKind.TOTAL, tree.below(tree.root)
        else:
            return state, []
        parcel = Parcel(kind=kind, tensors={"chunk": state["sum"]}, members=members)
        return state, [Post(to=to, parcel=parcel)]

    def listen(self, state: State, heard: Mapping[int, Sequence[Parcel]], at: Here) -> State:
        """Add what children say, or take what the parent says; after the last hop, step."""
        if at.hop == 0:
            return state
        tree, height = _tree_of(at)
        depth = tree.depth[at.me]
        total = state["sum"]
        if at.hop == height - depth:
            for child in tree.children[at.me]:
                total = total + chunk_of(
                    heard, child, at, kind=MessageKind.PARTIAL_SUM, members=tree.below(child)
                )
        elif at.hop == height + depth:
            total = chunk_of(
                heard,
                tree.parent[at.me],
                at,
                kind=MessageKind.TOTAL,
                members=tree.below(tree.root),
            )
        if at.hop + 1 < self.num_hops(len(at.members), at.links):
            return {**state, "sum": total}
        return ended(state, total, at)

    def model(self, state: State) -> Tensor:
        """Return the model."""
        return state["model"]


@dataclass(frozen=True, kw_only=True)
class _Tree:
    """A rooted tree of members.

    Attributes:
        root: The only one without a parent.
        parent: By member.
        children: By member, in order.
        depth: Links between a member and the root.
    """

    root: int
    parent: Mapping[int, int]
    children: Mapping[int, tuple[int, ...]]
    depth: Mapping[int, int]

    def below(self, member: int) -> tuple[int, ...]:
        """Return a member and all below it, in the order in which they are summed."""
        return (member, *(one for child in self.children[member] for one in self.below(child)))


def _tree_of(at: Here) -> tuple[_Tree, int]:
    """Return the tree of the members, and the height that the hops of the round allow for."""
    links = tuple(at.links)
    return _among(at.members, links), _height(len(at.members), links)


def _height(num_members: int, links: tuple[tuple[int, int], ...]) -> int:
    """Return a depth that no member exceeds; nobody's grows when others fail."""
    return min(max(_depths(links).values(), default=num_members), num_members - 1)


@functools.lru_cache(maxsize=8)
def _depths(links: tuple[tuple[int, int], ...]) -> Mapping[int, int]:
    """Return the depth of each peer that the smallest one reaches."""
    return {peer: len(line) - 1 for peer, line in _lines(links).items()}


@functools.lru_cache(maxsize=8)
def _lines(links: tuple[tuple[int, int], ...]) -> Mapping[int, tuple[int, ...]]:
    """Return the way from each peer up to the smallest one, both included."""
    beside: dict[int, list[int]] = {}
    for here, there in links:
        beside.setdefault(here, []).append(there)
    found: dict[int, tuple[int, ...]] = {min(beside): (min(beside),)} if beside else {}
    front = list(found)
    for peer in front:  # grows while it is walked
        for other in beside.get(peer, []):
            if other not in found:
                found[other] = (other, *found[peer])
                front.append(other)
    return found


@functools.lru_cache(maxsize=32)
def _among(members: tuple[int, ...], links: tuple[tuple[int, int], ...]) -> _Tree:
    left = set(members)
    lines = {one: [peer for peer in _lines(links)[one] if peer in left] for one in members}
    root = min(one for one in members if len(lines[one]) == 1)
    for one in members:
        if lines[one][-1] != root:
            lines[one].append(root)
    parent = {one: lines[one][1] for one in members if one != root}
    children = {
        one: tuple(sorted(child for child in parent if parent[child] == one)) for one in members
    }
    depth = {one: len(lines[one]) - 1 for one in members}
    return _Tree(root=root, parent=parent, children=children, depth=depth)
