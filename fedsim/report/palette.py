"""The colours of pages and pictures, in a light and a dark scheme."""

NUM_SERIES = 8
"""Colours of curves, runs and attacks: `c0` and on."""

LIGHT = {
    "paper": "#fbfaf7",
    "ink": "#1f1d1a",
    "muted": "#6e6a63",
    "grid": "#e4e0d8",
    "warn": "#a61b1b",
    "warn-paper": "#fdf1ef",
    "c0": "#c2410c",
    "c1": "#1d5f8a",
    "c2": "#3f7d3a",
    "c3": "#7c4a9e",
    "c4": "#a8326e",
    "c5": "#8a6d0b",
    "c6": "#0f766e",
    "c7": "#57534e",
}

DARK = {
    "paper": "#15161a",
    "ink": "#e8e5de",
    "muted": "#9d988f",
    "grid": "#32343a",
    "warn": "#ff9d8f",
    "warn-paper": "#2c1c1c",
    "c0": "#fb923c",
    "c1": "#6db3e0",
    "c2": "#86c97f",
    "c3": "#c39be0",
    "c4": "#ef86b8",
    "c5": "#dcbf4f",
    "c6": "#4fc4b8",
    "c7": "#b6b1a9",
}


def colour_of(series: int) -> str:
    """Return the name of the colour of a series; after the last they begin again."""
    return f"c{series % NUM_SERIES}"
