"""A federated learning simulator with an eavesdropper.

`fedsim.run("digits-curious-server")` trains, listens, inverts, scores and reports;
`fedsim.read_experiment` checks an experiment without running it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedsim.config import Experiment, read_experiment
    from fedsim.driver import RunResult, run

__version__ = "0.1.0"
__all__ = ["Experiment", "RunResult", "__version__", "read_experiment", "run"]

_HOMES = {
    "Experiment": "fedsim.config",
    "RunResult": "fedsim.driver",
    "read_experiment": "fedsim.config",
    "run": "fedsim.driver",
}


def __getattr__(name: str) -> Any:
    # lazy: importing one part of the package must not load torch, Flower and Ray for all of it
    if name not in _HOMES:
        raise AttributeError(f"module 'fedsim' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
