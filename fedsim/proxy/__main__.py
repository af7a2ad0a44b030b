"""`python -m fedsim.proxy`: what `fedsim tap` does, with its life tied to that of its parent."""

import argparse
import logging
import sys
from pathlib import Path

from fedsim.deployment.tied import tie
from fedsim.errors import FedsimError
from fedsim.proxy.command import tap


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description="Relay between SuperNodes and SuperLink.")
    parser.add_argument("--listen", action="append", required=True, help="[NAME@]HOST:PORT")
    parser.add_argument("--upstream", required=True, help="HOST:PORT of the SuperLink")
    parser.add_argument("--run", type=Path, required=True, help="run directory")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO)
    tie()
    try:
        tap(options.listen, options.upstream, options.run, say=logging.getLogger("tap").info)
    except FedsimError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
