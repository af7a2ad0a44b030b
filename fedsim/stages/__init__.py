"""The stages of a run; each also runs alone on a finished run directory."""
