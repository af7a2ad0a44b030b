"""`python -m fedsim.deployment.serverapp`: carries out the one run that a SuperLink has.

It loads the ServerApp before it asks for the run, so that nothing waits for its imports, and ends
with the run.
"""

import argparse
from pathlib import Path

from fedsim.catalog import load
from fedsim.deployment import DEPLOYED_SERVER_APP
from fedsim.deployment.flower_private import run_server_app
from fedsim.deployment.tied import tie


def main() -> None:
    """Read the options and do it."""
    parser = argparse.ArgumentParser(description="Carry out the run that a SuperLink has.")
    parser.add_argument("--superlink", required=True, help="HOST:PORT of the SuperLink")
    parser.add_argument("--root-certificates", type=Path, help="unset means plain HTTP")
    parser.add_argument("--superexec-auth-secret-file", type=Path, required=True)
    options = parser.parse_args()
    tie()
    load(DEPLOYED_SERVER_APP)
    secret = options.superexec_auth_secret_file.read_bytes()
    run_server_app(options.superlink, options.root_certificates, secret)


if __name__ == "__main__":
    main()
