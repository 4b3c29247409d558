"""The scripts that pages carry: files of this package, never text of the data."""

from __future__ import annotations

import base64
import hashlib
from importlib import resources

from markupsafe import Markup


def sorting_script() -> tuple[Markup, Markup]:
    """The script that sorts tables, and what lets it, and no other, run: the end of a content security policy."""
    text = (resources.files("marc_dist.report") / "templates" / "sort_tables.js").read_text(encoding="utf-8")
    sha = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return Markup(text), Markup(f"; script-src 'sha256-{sha}'")
