"""HTML pages from jinja2 templates, each one file that works from disk: stylesheets and scripts are copied into it."""

from functools import cache

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from diffux2ct.viz.slices import ERROR_COLOURS, ERROR_LIMIT


@cache
def templates(*packages: str) -> Environment:
    """The templates of these packages; a name is looked up in the first package's folder ``templates`` first.

    Every value is escaped unless it is Markup. In a template ``source("x.css")`` is that file, unchanged.
    """
    loader = ChoiceLoader([PackageLoader(package) for package in packages])
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {}  # keys stay in order
    environment.globals |= {
        "source": lambda name: Markup(loader.get_source(environment, name)[0]),
        "error_stops": ",".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in ERROR_COLOURS),
        "error_limit": ERROR_LIMIT,
    }
    return environment
