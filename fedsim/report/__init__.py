"""What a run came to, for people: one page, and pictures beside it."""

from fedsim.report.page import build

__all__ = ["build"]
