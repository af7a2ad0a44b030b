"""The live page of a run: what is being learned, heard and leaked, as it happens.

It reads the run directory and nothing else, changes nothing in it, and believes nothing that it
reads: names and messages come from clients and peers. `docs/watch.md` shows it.
"""
