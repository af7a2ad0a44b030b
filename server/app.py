"""The ServerApp, as Flower and every engine start it."""

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedsim.config import Experiment
from fedsim.errors import FedsimError
from fedsim.freed_memory import give_back_freed_memory, keep_freed_memory
from fedsim.lock import locked
from fedsim.proxy import LINKS_TAPPED
from fedsim.records import RunDirectory
from fedsim.stages.prepare import check, write_plan
from fedsim.wire import NOTE_FAILURE, read_experiment_config, read_run_directory
from server import peers, rounds

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run configuration holds."""
    experiment = read_experiment_config(context.run_config)
    run = read_run_directory(context.run_config)
    if run is not None:  # whoever gave us the directory works on it, and holds its lock
        _train(grid, context, experiment, run)
        return
    # started by `flwr run`, not by `fedsim run`: nobody has made one
    run = RunDirectory.create(Path(experiment.output.directory).resolve(), experiment.name)
    logging.getLogger("flwr").info("records go to %s", run.root)
    with locked(run.root, "training for flwr run"):
        _train(grid, context, experiment, run)


def _train(grid: Grid, context: Context, experiment: Experiment, run: RunDirectory) -> None:
    if not run.config.is_file():
        write_plan(check(experiment), run)
    keep_freed_memory()
    try:
        if experiment.decentralised:
            peers.train(experiment, run, grid)
        else:
            tapped = bool(context.run_config.get(LINKS_TAPPED))
            rounds.train(experiment, run, grid, tap_links=not tapped)
    except Exception as error:
        if context.run_config.get(NOTE_FAILURE):
            said = (
                str(error) if isinstance(error, FedsimError) else f"{type(error).__name__}: {error}"
            )
            run.append_event("server-failed", said)
        raise
    finally:
        give_back_freed_memory()
