"""The methods by name."""

from __future__ import annotations

from noble_fx.compressing.methods.activations import Activations
from noble_fx.compressing.methods.base import Method
from noble_fx.compressing.methods.diagonal import Diagonal
from noble_fx.compressing.methods.saes import Saes
from noble_fx.compressing.methods.svd import Svd
from noble_fx.compressing.methods.welore import Welore
from noble_fx.errors import ConfigError, nearest, shown

METHODS: dict[str, type[Method]] = {
    "activations": Activations,
    "svd": Svd,
    "welore": Welore,
    "saes": Saes,
    "diagonal": Diagonal,
}


def method_of(method: str | Method) -> tuple[str, Method]:
    """A method by its name, or itself, with the name that it goes by; raises `ConfigError` for an unknown one."""
    if isinstance(method, Method):
        kind = type(method)
        return next((name for name, known in METHODS.items() if known is kind), kind.__name__), method
    if not isinstance(method, str) or method not in METHODS:
        raise ConfigError(
            f"method={shown(method)} is unknown; use one of {', '.join(METHODS)}{nearest(str(method), METHODS)}"
        )
    return method, METHODS[method]()
