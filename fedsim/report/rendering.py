"""Pages that stand alone: one file, no script, no network, everything escaped."""

import hashlib
from base64 import b64encode
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fedsim.report import wording
from fedsim.report.drawing import COLOURS, NUM_COLOURS, Drawing, to_svg
from fedsim.report.pictures import data_uri, keeps_squares
from fedsim.report.reading import without_paths

MOST_SERIES = 24
"""Curves that a reader can hide one by one."""


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("fedsim.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "db": wording.decibels,
        "percent": wording.percent,
        "number": wording.number,
        "tiny": wording.tiny,
        "duration": wording.duration,
        "public": without_paths,
        "data_uri": data_uri,
    }
    environment.globals |= {
        "count": wording.count,
        "nothing": wording.NOTHING,
        "keeps_squares": keeps_squares,
        "colour_of": lambda series: f"c{series % NUM_COLOURS}",
    }
    return environment


def render(template: str, **values: object) -> str:
    """Return a page. Its policy allows its own style sheet and embedded images, nothing else."""
    environment = _environment()
    style = environment.get_template("style.css.j2").render(
        colours=COLOURS, most_series=MOST_SERIES
    )
    sha256 = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{sha256}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template(template)
    own = Markup(style)  # noqa: S704 (no text of a run is in it)
    return page.render(style=own, policy=policy, **values)


def both_widths(wide: Drawing, narrow: Drawing) -> Markup:
    """Return a drawing for wide screens and one for narrow ones; a page shows either."""
    return to_svg(wide, "wide") + to_svg(narrow, "narrow")
