"""What an active attack sends in place of weights: asked for, and checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from attacks.observation import ActiveAttack, AttackFailed, Knowledge, Observation, Tensors
from attacks.threats import Capability
from fedsim.errors import RunFailed
from fedsim.seeds import stream


@dataclass(frozen=True, kw_only=True)
class Tamperer:
    """An active attack at work in one run.

    Attributes:
        title: How records call the attack.
        attack: What it sends in place of the weights in force.
        known: What it was granted.
        seed: The experiment's.
        target: The client attacked in a round by what a receiver is sent; None where the receiver
            is sent the weights in force.
        earlier: What was heard of a client before a round.
        hears_sum: Whether only the mean of a round is heard, so that no reply can be left out of
            it.
    """

    title: str
    attack: ActiveAttack
    known: Knowledge
    seed: int
    target: Callable[[int, int], int | None]
    earlier: Callable[[str, int], Sequence[Observation]]
    hears_sum: bool

    def __call__(self, server_round: int, client: int, weights: Tensors) -> Tensors | None:
        """Return what to send instead of `weights`; None where nothing is changed.

        Raises:
            AttackFailed: The attack has nothing to send.
            RunFailed: What it would send is no state of this model, or it crashed.
        """
        target = self.target(server_round, client)
        if target is None:
            return None
        receiver = f"client-{client}"
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # as every worker of every engine, for equal bits
        try:
            changed = self.attack.tamper(
                {name: tensor.clone() for name, tensor in weights.items()},
                self.known,
                receiver=receiver,
                target=f"client-{target}",
                earlier=self.earlier(f"client-{target}", server_round),
                rng=stream(self.seed, "tamper", self.title, server_round, receiver),
            )
            return self._checked(changed, weights)
        except (AttackFailed, RunFailed):
            raise
        except Exception as error:  # the attack may be the user's own
            raise RunFailed(
                f"round {server_round}: attack '{self.title}' crashed on what to send to "
                f"{receiver}: {type(error).__name__}: {error}"
            ) from error
        finally:
            torch.set_num_threads(threads)

    def _checked(self, changed: Tensors, weights: Tensors) -> Tensors | None:
        forms = ({name: tuple(t.shape) for name, t in part.items()} for part in (changed, weights))
        if len({tuple(sorted(form.items())) for form in forms}) > 1:
            raise RunFailed(
                f"attack '{self.title}' must send all parameters of the model, by name and in "
                f"their shapes; it sends {_different(changed, weights)}"
            )
        sent = {
            name: changed[name].detach().to("cpu", like.dtype) for name, like in weights.items()
        }
        if all(torch.equal(sent[name], like) for name, like in weights.items()):
            return None
        if Capability.CHANGE_WEIGHTS not in self.attack.needs:
            raise RunFailed(
                f"attack '{self.title}' changes weights, but 'change-weights' is not among its "
                "needs"
            )
        return sent


def _different(changed: Tensors, weights: Tensors) -> str:
    for name, like in weights.items():
        if name not in changed:
            return f"no '{name}'"
        if changed[name].shape != like.shape:
            return f"'{name}' of shape {tuple(changed[name].shape)}, not {tuple(like.shape)}"
    return f"'{min(changed.keys() - weights.keys())}', which the model does not have"
