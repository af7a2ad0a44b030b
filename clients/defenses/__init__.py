"""Defenses: one file each; `fedsim.defenses.DEFENSES` names them."""
