"""Images of a run as PNG files: originals, films of how guesses came about, and guesses so far."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsim.progress import MOST_IMAGES
from fedsim.report.pictures import picture, png
from fedsim.stages.pairing import pair
from fedsim.watch.tensors import MOST_PRIVATE, Missing, RunTensors, looks, or_missing, stamp

MOST_SIDE = 1_024
"""Of an image that is shown, in pixels; larger ones are not."""
MOST_CHANNELS = 4


class Pictures:
    """Makes the pictures of one run.

    Args:
        tensors: Of the run.
    """

    def __init__(self, tensors: RunTensors) -> None:
        self.tensors = tensors

    def original(self, server_round: int, victim: str, image: int) -> bytes:
        """Return a private image.

        Raises:
            Missing: It is not there.
        """
        batch = self._batch(server_round, victim)
        if image >= len(batch):
            raise Missing
        _check("", batch.shape[1:])
        return png(picture(batch[image]))

    def film(self, observation: str, attack: str, guess: int) -> bytes:
        """Return every look that an attack took at one of its guesses, side by side, in order.

        The last one is the guess that it ended with.

        Raises:
            Missing: There is none.
        """
        path = self.tensors.film(observation, attack)

        def make() -> bytes:
            frames = [one.float() for one in looks(path, guess, _check)]
            with or_missing():  # of different sizes
                return png(picture(torch.cat(frames, dim=-1)))

        return self.tensors.kept(("film", observation, attack, guess, stamp(path)), make)

    def so_far(
        self, worker: str, observation: str, image: int, server_round: int, victim: str
    ) -> bytes:
        """Return the guess at one private image that a worker has at the moment.

        Of a batch, guesses are paired with the private images, as scoring does.

        Raises:
            Missing: There is none.
        """
        guesses = self.tensors.guesses(worker, observation, _check)[:MOST_IMAGES].float()
        if len(guesses) == 1:
            return png(picture(guesses[0]))
        private = self._batch(server_round, victim)
        if private.shape[1:] != guesses.shape[1:] or len(private) > MOST_PRIVATE:
            raise Missing
        with or_missing():
            found = pair(guesses.clamp(0, 1).nan_to_num(0.0), private.float()).get(image)
        if found is None:
            raise Missing
        return png(picture(guesses[found]))

    def _batch(self, server_round: int, victim: str) -> Tensor:
        inputs, _ = self.tensors.batch(server_round, victim)
        if inputs.dim() != 4:
            raise Missing
        return inputs


def _check(_: str, shape: Sequence[int]) -> None:
    """Refuse what is no image: channels, height, width."""
    if len(shape) != 3 or not 1 <= shape[0] <= MOST_CHANNELS:
        raise Missing
    if not all(1 <= side <= MOST_SIDE for side in shape[1:]):
        raise Missing
