"""From what was heard between peers to updates of single peers: views to observations.

Follows the rounds of a run. After each, every update that follows from what was heard so far is
written as an observation, once; and of peers that the adversary hears itself, where it does not
follow, the best guess. Peers further away are guessed at the end, in the round that is told best.

Nothing but views, the topology and the protocol goes in; the sealed truth is not read.
"""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

from attacks.isolation.candidates import may_follow
from attacks.isolation.last_model import isolate_from_models
from attacks.isolation.prior import size_of
from attacks.isolation.sparse import SparseChanges
from attacks.isolation.updates import Isolated, isolate
from attacks.observation import Kind, Observation
from attacks.threats import Capability, Position
from fedsim.config import Experiment
from fedsim.defenses import hides_messages
from fedsim.equations import Equations, Update
from fedsim.peers import federation_of
from fedsim.protocols.choco import Choco
from fedsim.protocols.gossip import Gossip
from fedsim.protocols.peer_protocol import MessageKind
from fedsim.protocols.simulate import row_of
from fedsim.records import RunDirectory
from fedsim.threat import threat_of, victims_of
from fedsim.views import views_of

WORST = 0.95
"""Guesses of peers that are heard are kept if their expected error is no larger."""
WORST_FAR = 0.8
"""The same of peers that are not heard themselves."""


class Isolator:
    """Turns the views of a run into observations, round by round.

    What it writes about a round depends on the views up to that round alone, so a run that is
    resumed, or attacked again, has the same observations.

    Args:
        experiment: Says who listens where.
        run: The run directory, which may still grow.
    """

    def __init__(self, experiment: Experiment, run: RunDirectory) -> None:
        self.experiment = experiment
        self.run = run
        self.federation = federation_of(experiment)
        self.threat = threat_of(experiment)
        self.dtype = self.federation.dtype  # now, and not beside the training: it builds a model
        self.equations = Equations(federation=self.federation, run=run)
        self.victims = victims_of(experiment, self.equations.places.peers)
        self.hidden = hides_messages(experiment)
        self.changes = self._sparse_changes()
        self.last_said: dict[int, tuple[int, Tensor, list[Tensor]]] = {}
        self.told: set[Update] = set()
        self.rounds_read = 0
        self.ended = False

    def _sparse_changes(self) -> SparseChanges | None:
        """Return what is known of peers under Choco, to an adversary that knows their start."""
        protocol, training = self.federation.protocol, self.experiment.training
        start = self.equations.known.get(self.equations.unknowns.start(0))
        if not isinstance(protocol, Choco) or start is None:
            return None
        return SparseChanges(
            start=start(),
            step=-training.learning_rate if training.update_kind == "gradient" else 1.0,
            gamma=protocol.share if protocol.gamma is None else protocol.gamma,
        )

    def step(self, *, trained: bool = False) -> list[int]:
        """Isolate what rounds that are over let isolate; return the numbers of those rounds.

        After the last one, with `trained`, a number above it stands for what is told at the end.
        """
        over, self.rounds_read = self.run.rounds_after(self.rounds_read)
        numbers = [one["round"] for one in over]
        done = []
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as every worker of every engine, for equal bits
        try:
            with threadpool_limits(limits=1):
                for number in sorted(set(numbers)):
                    if number > self.equations.round:
                        self._after(number)
                        done.append(number)
                if trained and not self.ended:
                    self.ended = True
                    self._at_the_end()
                    done.append(self.equations.round + 1)
        finally:
            torch.set_num_threads(threads)
        return done

    def _after(self, number: int) -> None:
        before = set(self.equations.told_by)
        self.equations.take(number)
        just_told = self.equations.told_by - before
        if not self.experiment.adversary.listens_in(number):
            self.changes = None  # copies are out of date from here on
            return
        self._write_sizes(number)
        for found in self._from_changes(number):
            self._write(found, number)
        for found in self._isolated(self._worth_a_try(number, just_told), WORST, just_told):
            self._write(found, number)
        for found in self._from_models(number):
            if (found.peer, found.round) not in self.told:
                self._write(found, number)

    def _worth_a_try(self, number: int, just_told: Collection[Update]) -> list[Update]:
        """Return which updates to ask for after a round: those that are not known to be in vain."""
        # what a collective says is of the updates of one round alone
        first = number if self.federation.protocol.collective else 1
        missing = [
            (peer, one)
            for one in range(first, number + 1)
            for peer in self.victims
            if (peer, one) not in self.told and self.experiment.adversary.listens_in(one)
        ]
        heard = self.equations.vectors()
        if not heard or first == number or set(missing) <= set(just_told):
            return missing
        follows = may_follow(np.stack([one.row for one in heard]), self.equations.known)
        column = self.equations.unknowns.update
        return [one for one in missing if one in just_told or follows[column(*one)]]

    def _from_changes(self, number: int) -> list[Isolated]:
        """Return what sparse changes of models tell of the updates of victims."""
        if self.changes is None:
            return []
        views = views_of(self.run, number)
        said = {
            (one.sender, one.round): None if one.parcel is None else one.parcel.tensors
            for view in views
            for one in view.messages
        }
        network, hear = self.federation.network, self.equations.places.hear
        heard = sorted({sender for sender, to in network.edges(number) if hear(sender, to)})
        rows = {
            peer: row_of(network.mixing(number)[peer], (*network.senders(number, peer), peer))
            for peer in heard
        }
        silent = {peer for view in views for peer in view.silent}
        told = self.changes.take(number, said, rows, deaf=silent)
        return [one for one in told if one.peer in self.victims]

    def _from_models(self, number: int) -> list[Isolated]:
        """Return what the models of victims tell, where it is by lot whom they meet."""
        if not isinstance(self.federation.protocol, Gossip) or self.equations.lots_known:
            return []
        models = [
            (one.sender, one.receiver, one.parcel.tensors["model"])
            for view in views_of(self.run, number)
            for one in view.messages
            if one.parcel is not None and one.parcel.kind is MessageKind.MODEL
        ]
        training = self.experiment.training
        rate = training.learning_rate if training.update_kind == "gradient" else None
        told = []
        for victim in self.victims:
            start = self.equations.known.get(self.equations.unknowns.start(victim))
            said = next((model for sender, _, model in models if sender == victim), None)
            if said is None:
                continue
            # each is heard once or twice in a round: by the ear of a peer, or of several
            met = {sender: model for sender, to, model in models if to == victim}
            since, before, others = self.last_said.get(victim, (0, None, []))
            told += isolate_from_models(
                {number: said} if before is None else {since: before, number: said},
                victim,
                start=None if start is None else start(),
                met={since: others},
                hears_all=False,
                learning_rate=rate,
                rounds=number,
            )[-1:]
            self.last_said[victim] = (number, said, list(met.values()))
        return [one for one in told if one.round == number]

    def _at_the_end(self) -> None:
        """Guess at peers of whom nothing was told, each in the round that is told best."""
        if not self.equations.round:
            return
        told = {peer for peer, _ in self.told}
        far = [
            (peer, one)
            for peer in self.victims
            if peer not in told
            for one in range(1, self.equations.round + 1)
            if self.experiment.adversary.listens_in(one)
        ]
        best: dict[int, Isolated] = {}
        for found in self._isolated(far, WORST_FAR, set(far)):
            other = best.get(found.peer)
            if other is None or _doubt(found) < _doubt(other):
                best[found.peer] = found
        for peer in sorted(best):
            self._write(best[peer], self.equations.round + 1)

    def _isolated(
        self, updates: Sequence[Update], worst: float, or_estimate: Collection[Update]
    ) -> list[Isolated]:
        heard = self.equations.vectors()
        if not heard or not updates:
            return []
        wanted = [
            replace(self.equations.wanted(update), or_estimate=update in or_estimate)
            for update in updates
        ]
        if Capability.WEIGHTS not in self.threat.grants:
            wanted = [replace(one, weights=None) for one in wanted]
        return isolate(
            heard,
            wanted,
            unknowns=self.equations.unknowns_now(),
            known=self.equations.known,
            num_coordinates=self.federation.layout.size,
            worst_error=worst,
            dtype=torch.float64,
        )

    # observations

    def _write(self, found: Isolated, told_after: int) -> None:
        update = found.peer, found.round
        self.told.add(update)
        layout, weights = self.federation.layout, found.weights
        if Capability.WEIGHTS not in self.threat.grants:
            weights = None
        if weights is not None:
            at = self.equations.weights.get(update)
            weights = weights if at is None else weights + self.equations.said(at)
            self.equations.forget_weights(update)
        kind = Kind(self.experiment.training.update_kind)
        kind = Kind.DELTA if kind is Kind.WEIGHTS else kind
        raw = self.equations.raw.get(update, 0)
        as_sent = found.how == "exact" and found.num_heard <= raw
        self._keep(
            Observation(
                round=found.round,
                sender=f"client-{found.peer}",
                receiver=self.ear,
                kind=kind if found.visible is None else Kind.CHUNK,
                update=layout.tensors(found.update.to(self.dtype)),
                visible=None if found.visible is None else layout.tensors(found.visible),
                weights=(None if weights is None else layout.tensors(weights.to(self.dtype))),
                isolated="heard" if as_sent else found.how,
                expected_error=0.0 if as_sent else found.expected_error,
                expected_weights_error=_relative(found.weights_error, weights),
            ),
            told_after,
        )

    def _write_sizes(self, number: int) -> None:
        """Write how much was heard of whom on links that hide all else."""
        for (peer, server_round), num_bytes in sorted(self.equations.sizes.items()):
            if server_round != number or peer not in self.victims or not self.hidden:
                continue
            self._keep(
                Observation(
                    round=number,
                    sender=f"client-{peer}",
                    receiver=self.ear,
                    kind=Kind.SIZES_ONLY,
                    update={},
                    num_bytes=num_bytes,
                ),
                number,
            )

    def _keep(self, seen: Observation, told_after: int) -> None:
        self.run.write_observation(seen, told_after=told_after)

    @property
    def ear(self) -> str:
        """How observations call who heard: the tap, the relay, a peer, or several of them."""
        if self.threat.position is Position.LINK:
            return "tap"
        if self.threat.position is Position.RELAY:
            return "relay"
        return "peer-" + "-".join(map(str, self.equations.places.peers))


def _relative(error: float | None, vector: Tensor | None) -> float | None:
    """Return an error relative to the root mean square of a vector; None if nobody can say."""
    if error is None or vector is None:
        return None
    return error / (size_of(vector) or 1.0)


def _doubt(found: Isolated) -> float:
    """Return the error to expect; where nobody can say, more than of any other."""
    return float("inf") if found.expected_error is None else found.expected_error
