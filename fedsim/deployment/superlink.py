"""`python -m fedsim.deployment.superlink`: Flower's SuperLink, which lets nobody poll.

Takes the options of `flower-superlink`.
"""

import sys

from fedsim.deployment.flower_private import run_superlink
from fedsim.deployment.tied import tie

if __name__ == "__main__":
    tie()
    run_superlink(sys.argv[1:])
