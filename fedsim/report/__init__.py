"""What runs came to, for people: one page for one run, with pictures beside it, or for several."""

from fedsim.report.comparison import compare
from fedsim.report.page import build

__all__ = ["build", "compare"]
