"""Nothing is unpickled: not from the wire, not from disk, in no process of a run."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLACES = {
    "fedsim/data/pickled.py": "the published files of CIFAR, by stand-ins of our own",
    "attacks/metrics/perceptual.py": "weights for LPIPS, by PyTorch's weights-only loader",
}
"""The two modules that read pickle, and what; neither can be made to run code by what it reads."""
RUNS_CODE = {
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"),
    *("jsonpickle", "yaml"),
}

HOOK = """
import os, pickle, sys, traceback

LOG = os.environ["PICKLE_LOG"]


def note(what):
    with open(LOG, "a") as file:
        file.write(what + "\\n" + "".join(traceback.format_stack(limit=12)) + "\\n")


def heard(event, arguments):
    if event == "pickle.find_class":
        note(f"{event} {arguments}")


def noted(name, function):
    def call(*arguments, **settings):
        note(name)
        return function(*arguments, **settings)
    return call


sys.addaudithook(heard)
pickle.load, pickle.loads = noted("pickle.load", pickle.load), noted("pickle.loads", pickle.loads)
with open(LOG + ".processes", "a") as file:
    file.write(f"{os.getpid()}\\n")
"""

RUN = '''
import sys
from pathlib import Path

from fedsim import driver
from fedsim.config import parse_experiment
from fedsim.report.page import build
from fedsim.records import RunDirectory

text = """
name = "tiny"
rounds = 2
partition = { clients = 3 }
model = { name = "mlp", options = { hidden = [4] } }
training = { batch_size = 1 }
output = { directory = "%s" }
attacks = [{ name = "linear" }]
""" % sys.argv[1]
made = driver.run(parse_experiment(text + sys.argv[2]))
path = made.directory
driver.attack_again(path, again=True)
driver.score_again(path)
build(RunDirectory.open(path))
if len(sys.argv) > 3:
    import pickle
    pickle.loads(pickle.dumps(Path("x")))
'''

PEERS = """
topology = { name = "ring" }
protocol = { name = "d-psgd", encrypted = true }
adversary = { threat = "curious-neighbour" }
"""


def ran(folder: Path, *arguments: str) -> tuple[str, int]:
    """What was unpickled in a run and all that follows it, and how many processes it took."""
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    log = folder / "log"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder / "runs"), *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=os.environ
        | {"PYTHONPATH": f"{hook}{os.pathsep}{ROOT}", "PICKLE_LOG": str(log)}
        | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    processes = Path(f"{log}.processes").read_text().split()
    return (log.read_text() if log.exists() else ""), len(set(processes))


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", PEERS], ids=["server", "peers"])
def test_a_run_its_attacks_scores_and_report_unpickle_nothing(tmp_path: Path, text: str) -> None:
    unpickled, processes = ran(tmp_path, text)

    assert unpickled == ""
    assert processes >= 3  # the run, and a worker for each time that attacks were made


@pytest.mark.slow
def test_what_is_unpickled_would_be_heard(tmp_path: Path) -> None:
    unpickled, _ = ran(tmp_path, "", "and unpickle")

    assert "pickle.loads" in unpickled
    assert "pickle.find_class" in unpickled


def test_two_modules_alone_can_read_pickle_or_anything_like_it() -> None:
    found = set()
    for package in ("attacks", "clients", "fedsim", "server"):
        for path in (ROOT / package).rglob("*.py"):
            name = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text())):
                if _runs_code(node):
                    found.add(name)

    assert found == set(PLACES)
    perceptual = (ROOT / "attacks/metrics/perceptual.py").read_text()
    assert perceptual.count("torch.load(") == perceptual.count("weights_only=True") == 1


def _runs_code(node: ast.AST) -> bool:
    """Whether a piece of a program imports or calls what may run code of a file that it reads."""
    if isinstance(node, ast.Import):
        return any(alias.name.partition(".")[0] in RUNS_CODE for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] in RUNS_CODE
    if isinstance(node, ast.Call):
        if any(one.arg == "allow_pickle" for one in node.keywords):
            return True
        called = ast.unparse(node.func)
        return called in {"torch.load", "np.load", "numpy.load"}
    return False
