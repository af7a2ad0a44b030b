"""The process that scores while clients train, so that scoring takes nothing from the training.

A thread of the process that trains would compete with it for the interpreter. Started as
`python -m fedsim.scoring RUN SETTINGS`, it takes one record of a reconstruction per line from
standard input, as JSON, and answers with its score, one line each; end of input ends it. What
attacks is another process: this one opens the truth.
"""

import json
import shutil
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import torch

from fedsim.files import Record, read_tensors, replace_tensors
from fedsim.line_process import LineProcess, answers_to_parent
from fedsim.records import RunDirectory
from fedsim.stages.score import score_one

AHEAD = 8
"""Records that the process is handed at once: more could fill the pipe, and hold up the run."""

OnScore = Callable[[Record], None]
"""Told of each score."""


class Scorer:
    """Scores the reconstructions of a run in the order in which they came.

    The first that comes while clients train starts a process, which scores it and all that follow;
    where none came, they are scored here. If the process dies, what it did not answer is scored
    here: an error then ends the run as it would have without the process.

    Args:
        run: The run directory.
        settings: Whatever else `score_one` needs, by keyword.
        on_score: Told of each score.
    """

    def __init__(self, run: RunDirectory, settings: Mapping[str, Any], on_score: OnScore) -> None:
        self.run = run
        self.settings = settings
        self.on_score = on_score
        self.process: _Process | None = None

    @property
    def waiting(self) -> int:
        """Reconstructions that are not scored yet."""
        return 0 if self.process is None else len(self.process.unanswered)

    def score(self, record: Record, *, beside_training: bool) -> None:
        """Score a reconstruction, now or later."""
        if self.process is None and beside_training:
            self.process = _Process(self.run, self.settings)
        if self.process is None:
            self._score_here(record)
        else:
            self.process.unanswered.append(record)

    def step(self) -> None:
        """Pass on the scores that are there, and keep the process busy."""
        if self.process is None:
            return
        over = self.process.over.is_set()  # before its answers: none comes after
        for answer in self.process.poll():
            self.on_score(answer)
        if over:
            lost, self.process = self.process, None
            how = lost.child.last_words()
            lost.close()
            self.run.append_event(
                "scoring-process-lost",
                f"it ended with {how}; the run itself scores what it had left",
            )
            for record in lost.unanswered:
                self._score_here(record)

    def close(self) -> None:
        """End the process; what it has not answered is not scored."""
        if self.process is not None:
            self.process.close()
            self.process = None

    def _score_here(self, record: Record) -> None:
        self.on_score(score_one(self.run, record, **self.settings))


class _Process:
    """The process, and the records that it has not answered, oldest first."""

    def __init__(self, run: RunDirectory, settings: Mapping[str, Any]) -> None:
        self.unanswered: deque[Record] = deque()
        self.asked = 0  # how many of those it was handed
        self.answers: deque[Record] = deque()
        self.over = threading.Event()
        self.folder = tempfile.TemporaryDirectory(prefix="fedsim-scoring-")
        path = Path(self.folder.name) / "settings.safetensors"
        plain = {name: value for name, value in settings.items() if name != "public_sample"}
        replace_tensors(
            path, {"public_sample": settings["public_sample"]}, {"settings": json.dumps(plain)}
        )
        self.child = LineProcess(__name__, [str(run.root.resolve()), str(path)], self._heard)

    def _heard(self, line: str) -> None:
        if self.over.is_set():
            return
        if not line.endswith("\n"):  # it ended, or died while it wrote
            self.over.set()
        else:
            self.answers.append(json.loads(line))

    def poll(self) -> list[Record]:
        """Return the answers that came since the last call, and hand over a few more records."""
        came = [self.answers.popleft() for _ in range(len(self.answers))]
        for _ in came:
            self.unanswered.popleft()
        self.asked -= len(came)
        for record in islice(self.unanswered, self.asked, AHEAD):
            self.child.say(json.dumps(record))
            self.asked += 1
        return came

    def close(self) -> None:
        """End the process."""
        self.child.end()
        self.folder.cleanup()


def serve(root: Path, settings: Path, records: TextIO, answers: TextIO) -> None:
    """Score whatever `records` holds, one JSON line each, and answer on `answers`.

    Args:
        root: The run directory.
        settings: A file in a folder of its own, which is removed once it is read.
        records: Of reconstructions.
        answers: Takes their scores.
    """
    torch.set_num_threads(1)
    tensors, metadata = read_tensors(settings)
    shutil.rmtree(settings.parent)  # now: whoever made it may be killed
    more: dict[str, Any] = json.loads(metadata["settings"]) | tensors
    run = RunDirectory.open(root)
    for line in records:
        answer = score_one(run, json.loads(line), **more)
        answers.write(json.dumps(answer, allow_nan=False) + "\n")
        answers.flush()


def main() -> None:
    """Run as a process of its own."""
    answers = answers_to_parent()
    serve(Path(sys.argv[1]), Path(sys.argv[2]), sys.stdin, answers)


if __name__ == "__main__":
    main()
