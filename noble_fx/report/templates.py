"""What HTML is made with: the files of `assets/`, and jinja2, which escapes whatever a template is given."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from noble_fx.errors import ConfigError, printable

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def asset(name: str) -> str:
    """The text of a file of `assets/`."""
    return files("noble_fx.report").joinpath("assets", *name.split("/")).read_text(encoding="utf-8")


@cache
def templates() -> Environment:
    """The environment of every template; raises `ConfigError` where the packages are missing."""
    try:
        import jinja2
        import pygments  # noqa: F401  # highlights kernels
    except ImportError as missing:
        wanted = 'pip install "noble-fx[report]"'
        raise ConfigError(f"HTML is made with {missing.name}, which is not installed: {wanted}") from None
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
        finalize=_on_one_line,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment


def _on_one_line(value: Any) -> Any:
    """A name or a reason with its control characters as escapes; what is markup already stays."""
    return value if hasattr(value, "__html__") or not isinstance(value, str) else printable(value)
