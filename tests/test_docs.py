"""What the documentation says is true: its code runs, its tables and messages are the program's."""

import itertools
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.core import TyperGroup
from typer.main import get_command

import fedsim
from attacks.defense import read_defenses
from docs.generate import generated
from fedsim.cli import app
from fedsim.data import DATASETS, PARTITIONERS
from fedsim.errors import ConfigError
from fedsim.families import FAMILIES
from fedsim.knowledge import read_knowledge
from fedsim.models import MODELS
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check
from fedsim.topologies.build import network_of
from server import STRATEGIES

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
EVERY_PAGE = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"))]


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def files(page: Path) -> dict[str, str]:
    """Return the blocks that begin with `# file: NAME`, by name."""
    found = [block for language in ("python", "toml") for block in blocks(page, language)]
    marked = [re.match(r"# file: (\S+)\n", block) for block in found]
    return {mark.group(1): mark.string for mark in marked if mark}


@pytest.fixture
def contributed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that CONTRIBUTING.md shows, from which `fedsim` is started."""
    for name, text in files(ROOT / "CONTRIBUTING.md").items():
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for path in tmp_path.glob("*.py"):
        monkeypatch.delitem(sys.modules, path.stem, raising=False)
    return tmp_path


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_generated_tables_of_a_page_are_up_to_date(page: Path) -> None:
    text = page.read_text()

    assert generated(text) == text, "run: python docs/generate.py"


def test_a_default_that_is_made_anew_for_each_object_is_written_as_a_user_would() -> None:
    table = generated("<!-- generated: defense-options -->\n<!-- end -->")

    assert "| `drop` | table | `{}` |" in table
    assert "factory" not in table


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in EVERY_PAGE if blocks(page, "python")], ids=lambda page: page.name
)
def test_the_python_code_of_a_page_runs_from_top_to_bottom(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # runs go to `runs` in the folder where one is
    names: dict[str, object] = {"__name__": "page"}

    for block in blocks(page, "python"):
        if block.startswith("# file:"):
            continue
        with torch.random.fork_rng():
            exec(compile(block, page.name, "exec"), names)  # noqa: S102 - our own pages


def test_every_experiment_on_a_page_is_sound(
    contributed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiments = [text for page in EVERY_PAGE for text in blocks(page, "toml")]
    assert len(experiments) >= 3

    for text in experiments:
        (contributed / "experiment.toml").write_text(text)
        check(fedsim.read_experiment("experiment.toml"))


@pytest.mark.parametrize(
    ("command", "said"),
    [
        pair
        for block in blocks(ROOT / "docs" / "experiments.md", "text")
        for pair in zip(block.splitlines()[::2], block.splitlines()[1::2], strict=True)
    ],
    ids=lambda text: text.rpartition("--set ")[2][:40],
)
def test_bad_input_is_refused_in_the_words_of_the_page(command: str, said: str) -> None:
    assert overrides_of(command)

    with pytest.raises(ConfigError) as refused:
        check(fedsim.read_experiment("digits-curious-server", overrides_of(command)))

    assert str(refused.value) == said


def test_the_overrides_on_the_page_are_accepted() -> None:
    text = (ROOT / "docs" / "experiments.md").read_text()
    section = text.split("## Overrides")[1].split("\n## ")[0]
    commands = [line for line in section.splitlines() if line.startswith("fedsim run ")]
    assert commands

    for command in commands:
        check(fedsim.read_experiment(shlex.split(command)[2], overrides_of(command)))


def overrides_of(command: str) -> list[str]:
    """Return the values of `--set` of a command line."""
    words = shlex.split(command)
    return [value for option, value in itertools.pairwise(words) if option == "--set"]


def test_every_command_and_option_is_documented() -> None:
    text = (ROOT / "docs" / "commands.md").read_text()
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    assert group.commands

    for name, command in group.commands.items():
        assert f"(#fedsim-{name})" in text
        section = text.split(f"\n## `fedsim {name}`")[1].split("\n## ")[0]
        for parameter in command.params:
            for option in (*parameter.opts, *parameter.secondary_opts):
                if option.startswith("--"):
                    assert option in section, f"fedsim {name} {option}"


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_that_can_be_listed_is_named(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "commands.md").read_text()


@pytest.mark.parametrize("name", [*DATASETS, *MODELS, *PARTITIONERS, *STRATEGIES])
def test_every_name_an_experiment_may_use_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "experiments.md").read_text()


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())

    for link in links:
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), link
        if anchor:
            assert anchor in headings(path), link


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles}


@pytest.mark.slow
def test_the_attacks_and_the_task_of_the_guide_run(contributed: Path) -> None:
    nearest = fedsim.run("nearest.toml")
    awake = fedsim.run("awake.toml")
    stripes = fedsim.run("stripes.toml")

    assert {score["status"] for score in nearest.scores} == {"done"}
    assert len(nearest.scores) == 4  # two rounds, two victims
    assert nearest.summary["leakage"][0]["label_accuracy"] == 1.0  # exact for one example
    assert awake.summary["leakage"][0]["success_rate"] == 1.0  # exact but for rounding
    assert awake.summary["leakage"][0]["threat"] == "malicious-server"
    assert stripes.summary["leakage"][0]["success_rate"] == 1.0  # exact but for rounding


def test_the_defense_of_the_guide_defends_and_is_read(contributed: Path) -> None:
    halved = fedsim.run("halved.toml")

    record = RunDirectory(halved.directory).observation_records()[0]["id"]
    seen = RunDirectory(halved.directory).read_observation(record)
    known = read_knowledge(RunDirectory(halved.directory))
    read, _ = read_defenses(seen, known)
    assert read.visible is not None
    for name, tensor in seen.update.items():
        assert torch.equal(read.visible[name], tensor != 0)
        if tensor.numel() > 1000:
            assert float((tensor != 0).double().mean()) < 0.3  # a quarter, of what is not zero


def test_the_topology_of_the_guide_is_drawn_checked_and_weighted(contributed: Path) -> None:
    network = network_of(fedsim.read_experiment("chorded.toml"))

    assert network.senders(1, 0) == (1, 4, 5, 8)
    np.testing.assert_allclose(network.mixing(1).sum(axis=0), 1)
    np.testing.assert_allclose(network.mixing(1).sum(axis=1), 1)


def test_each_example_of_the_guide_is_shorter_than_thirty_lines() -> None:
    for name, text in files(ROOT / "CONTRIBUTING.md").items():
        code = [line for line in text.splitlines()[1:] if line.strip()]
        assert len(code) < 30, f"{name}: {len(code)} lines"
