"""Draw the pictures of the attack pages: `python docs/pictures.py [NAME ...]`.

Each `docs/attacks/NAME.toml` is an experiment that runs as it stands; the gallery of its run (of an
attack that guesses no images, the chart; of text and tables, private and guessed lines) becomes
`docs/attacks/NAME.png`, which its page shows.
"""

import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from fedsim.config import read_experiment
from fedsim.driver import RunResult, run
from fedsim.examples import Reader, read_data
from fedsim.files import read_json
from fedsim.quality import examples
from fedsim.records import RunDirectory
from fedsim.stages.score_others import texts_of
from fedsim.truth import unseal

_SHOWN = 3
"""Texts or rows of a batch."""
_FEATURES = 9
"""Of a row."""
ATTACK_PAGES = Path(__file__).resolve().parent / "attacks"


def experiments() -> dict[str, Path]:
    """Return the experiment of every page, by the name of the attack."""
    return {path.stem: path for path in sorted(ATTACK_PAGES.glob("*.toml"))}


def run_page(name: str, folder: Path) -> RunResult:
    """Run the experiment of one page; its run directory is made in `folder`."""
    return run(experiments()[name], overrides=[f"output.directory={folder}"])


def draw(name: str) -> Path:
    """Run the experiment of one page and put its picture beside the page."""
    picture = ATTACK_PAGES / f"{name}.png"
    with tempfile.TemporaryDirectory() as folder:
        directory = run_page(name, Path(folder)).directory
        gallery, chart = (directory / "pictures" / f"{one}.png" for one in ("gallery", "curve"))
        lines = list(_lines(RunDirectory(directory), name))
        if lines:
            _write(lines, picture)
        else:
            shutil.copyfile(gallery if gallery.is_file() else chart, picture)
    return picture


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A text or a row: what it is, its parts, and which of them are right; None for the private."""

    title: str
    parts: Sequence[str]
    right: Sequence[bool] | None


def _lines(run: RunDirectory, name: str) -> Iterator[_Line]:
    """Yield what was private and what the attack made of it, if that is text or rows of a table."""
    reader = read_data(run)
    titles = {one.title for one in read_experiment(experiments()[name]).attacks if one.name == name}
    for score in run.scores():
        if reader.modality == "image" or score["attack"] not in titles:
            continue
        sealed = unseal(run, score["round"], score["victim"])
        stem = f"{score['observation']}--{score['attack']}"
        guess = run.read_reconstruction(read_json(run.root / "reconstructions" / f"{stem}.json"))
        if sealed is None or guess.inputs is None:
            continue
        for one in examples(score)[:_SHOWN]:
            if one["guess"] is None:
                continue
            if reader.modality == "text":
                private = _words(reader, texts_of(sealed, reader)[one["truth"]])
                found = _words(reader, guess.inputs[one["guess"]])
                right = [
                    place < len(private) and private[place] == word
                    for place, word in enumerate(found)
                ]
            else:
                private = reader.cells(sealed[0][one["truth"]])[:_FEATURES]
                found = reader.cells(guess.inputs[one["guess"]])[:_FEATURES]
                right = [place not in one["wrong"] for place in range(len(found))]
            yield _Line(title=f"{score['victim']}, private", parts=private, right=None)
            yield _Line(title=score["attack"], parts=found, right=right)


def _words(reader: Reader, tokens: torch.Tensor) -> list[str]:
    special = frozenset() if reader.tokens is None else reader.tokens.special
    return [reader.word(int(one)) for one in tokens if int(one) not in special]


def _write(lines: Sequence[_Line], picture: Path) -> None:
    """Write lines as a picture: right parts green and underlined, wrong ones red."""
    height = 0.34 * len(lines) + 0.2
    figure, axes = plt.subplots(figsize=(10, height), dpi=110)
    axes.set(xlim=(0, 1), ylim=(len(lines) + 0.2, -0.6))
    axes.axis("off")
    for row, line in enumerate(lines):
        axes.text(0, row, line.title, fontsize=8, color="#666666", va="center")
        left = 0.15
        for place, part in enumerate(line.parts):
            right = None if line.right is None else line.right[place]
            colour = {None: "#222222", True: "#1b6e35", False: "#b3261e"}[right]
            drawn = axes.text(left, row, part, fontsize=9, color=colour, va="center")
            box = drawn.get_window_extent().transformed(axes.transData.inverted())
            if right:
                axes.plot([box.x0, box.x1], [row + 0.34] * 2, color=colour, linewidth=1.2)
            left = box.x1 + 0.008
    figure.savefig(picture, bbox_inches="tight", facecolor="white")
    plt.close(figure)


def main(names: Sequence[str]) -> None:
    """Draw the pictures of the named pages, or of all."""
    torch.set_num_threads(1)
    for name in names or experiments():
        sys.stdout.write(f"{draw(name)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
