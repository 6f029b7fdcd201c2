"""Templates -> one HTML file with everything inside."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import jinja2

import fedapt

_LAYOUT = "page.html.j2"


def render(package: str, template: str, **values: Any) -> str:
    """Fill a package's template, which extends `page.html.j2` of this one.

    Args:
        package: the package whose folder holds the template.
        values: the template's variables; a missing one is an error.
    """

    def read(name: str) -> str:
        return (files(__package__ if name == _LAYOUT else package) / name).read_text("utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(read), autoescape=True, undefined=jinja2.StrictUndefined
    )
    return environment.get_template(template).render(version=fedapt.__version__, **values)
