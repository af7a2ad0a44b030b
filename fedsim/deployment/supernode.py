"""`python -m fedsim.deployment.supernode`: Flower's SuperNode, which passes messages on at once.

Takes the options of `flower-supernode`.
"""

import sys

from fedsim.deployment.flower_private import run_supernode
from fedsim.deployment.tied import tie

if __name__ == "__main__":
    tie()
    run_supernode(sys.argv[1:])
