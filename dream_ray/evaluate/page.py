"""From templates to a self-contained page: its policy, its script, its filters.

Contract: `render` returns a whole page that fetches nothing and runs only the one script that stands in this package: the
page's content security policy names it by its hash, so that no text in the page can become code. All text is escaped by
the template engine.
"""

import base64
import hashlib
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

MAX_TEXT = 4000
"""Longest text shown, in characters; a cut text says so."""


def render(template: str, **values: Any) -> str:
    """A template of pages/ with its values."""
    script = _resource("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = _environment().get_template(template)
    return page.render(values, script=Markup(script), script_hash=digest, style=Markup(_resource("page.css")))


def _resource(name: str) -> str:
    return resources.files(__package__).joinpath("pages", name).read_text(encoding="utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__package__, "pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clip": _clip, "duration": format_duration, "percent": format_percent, "size": format_size}
    return environment


def _clip(text: str) -> str:
    rest = len(text) - MAX_TEXT
    return text if rest <= 0 else f"{text[:MAX_TEXT]} … (cut here, {rest} more characters)"


def format_percent(value: float) -> str:
    """ "87%"."""
    return f"{value:.0%}"


def format_size(count: int) -> str:
    """Bytes as "1.2 MB", at least "0.1 MB"."""
    return f"{max(count / 1e6, 0.1):.1f} MB"


def format_duration(seconds: float) -> str:
    """ "7.3 s", "4 min 10 s", "2 h 05 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
