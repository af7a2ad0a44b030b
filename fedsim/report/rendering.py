"""Pages that stand alone: one file, no script, no network, everything escaped."""

import hashlib
from base64 import b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fedsim import quality
from fedsim.report import wording
from fedsim.report.charts import svg
from fedsim.report.palette import DARK, LIGHT, colour_of
from fedsim.report.pictures import data_uri, keeps_squares
from fedsim.report.reading import without_paths

WIDE, NARROW = 960, 420
"""Widths of charts, in pixels."""
NARROW_SCREEN = "(max-width: 40rem)"
"""Where pages show the narrow ones."""


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
        "percent": wording.percent,
        "number": wording.number,
        "tiny": wording.tiny,
        "share": wording.share,
        "size": wording.size,
        "duration": wording.duration,
        "remarks": wording.remarks,
        "public": without_paths,
        "data_uri": data_uri,
    }
    environment.globals |= {
        "count": wording.count,
        "measured": quality.measured,
        "baseline": quality.baseline,
        "threshold": quality.threshold,
        "nothing": wording.NOTHING,
        "keeps_squares": keeps_squares,
        "colour_of": colour_of,
    }
    return environment


def render(template: str, **values: object) -> str:
    """Return a page. Its policy allows its own style sheet and embedded images, nothing else."""
    environment = _environment()
    style = style_sheet()
    sha256 = b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'sha256-{sha256}'; "
        "base-uri 'none'; form-action 'none'"
    )
    page = environment.get_template(template)
    own = Markup(style)  # noqa: S704 (no text of a run is in it)
    return page.render(style=own, policy=policy, **values)


def style_sheet() -> str:
    """Return the style sheet of every page."""
    template = _environment().get_template("style.css.j2")
    return template.render(light=LIGHT, dark=DARK, narrow=NARROW_SCREEN)


class Draw(Protocol):
    """What draws a chart."""

    def __call__(self, *, width: int, colours: Mapping[str, str]) -> Figure:
        """Draw it so wide, in these colours."""


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart as a page holds it: drawn for wide and narrow screens, in light and dark colours.

    Attributes:
        label: What it shows, for readers who cannot see it.
        sources: (media query, image) for all but the first of these.
        image: For wide screens in light colours.
    """

    label: str
    sources: list[tuple[str, str]]
    image: str


def chart(draw: Draw, label: str, *, wide: int = WIDE) -> Chart:
    """Draw a chart in every way that a page may need it, so wide where there is room."""
    dark = "(prefers-color-scheme: dark)"
    ways = [
        (f"{NARROW_SCREEN} and {dark}", NARROW, DARK),  # the first that fits is shown
        (NARROW_SCREEN, NARROW, LIGHT),
        (dark, wide, DARK),
    ]
    return Chart(
        label=label,
        sources=[(media, _uri(draw(width=w, colours=c))) for media, w, c in ways],
        image=_uri(draw(width=wide, colours=LIGHT)),
    )


def _uri(figure: Figure) -> str:
    return f"data:image/svg+xml;base64,{b64encode(svg(figure)).decode()}"
