"""Defenses at the server: one file each; `fedsim.defenses.DEFENSES` names them."""
