"""Pages: templates filled with values; every value is escaped, and a missing one is an error."""

from __future__ import annotations

import base64
import functools
import io

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from marc_dist.report.score_rows import score, signed


@functools.cache
def templates() -> Environment:
    """The templates of this package.

    Pages are HTML, so everything is escaped but what ``charts.as_svg`` drew.
    """
    found = Environment(
        loader=PackageLoader("marc_dist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {"score": score, "signed": signed, "picture": picture_uri}
    return found


def render_page(template: str, **values: object) -> str:
    """One self-contained page.

    Args:
        template: name of a template that extends ``page.html.j2``.
        values: what it names.
    """
    return templates().get_template(template).render(values)


def picture_uri(image: Image.Image, side: int = 192) -> str:
    """A picture, at most ``side`` pixels wide and high, as a ``data:`` address."""
    image = image.copy()
    image.thumbnail((side, side))
    data = io.BytesIO()
    small = max(image.size) <= 96
    image.save(data, "PNG" if small else "JPEG", **({} if small else {"quality": 88}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"
