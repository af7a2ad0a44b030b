"""Write the JSON schema of every kind of record: `python -m fedsim.schemas FOLDER`."""

import sys
from pathlib import Path

from fedsim.schemas import write_schemas

write_schemas(Path(sys.argv[1]))
