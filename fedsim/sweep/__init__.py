"""Grids of experiments: what a defense costs, and what three attackers still get out of it."""
