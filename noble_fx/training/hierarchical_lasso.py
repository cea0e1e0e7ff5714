"""`noble_fx.hierarchical_lasso`: a penalty under which the last parts of ordered bases vanish first (Maestro)."""

from __future__ import annotations

from torch import Tensor, nn

from noble_fx.attach.bases import named_bases
from noble_fx.errors import ConfigError


def hierarchical_lasso(model: nn.Module) -> Tensor:
    """Σ over the parts j of all bases of kind "ordered" of ‖A[:, j:]‖ + ‖B[j:]‖, to be added to the loss times λ.

    A part is in the tails of all before it, so the last ones are pressed most. Raises `ConfigError` where there are no
    such bases.
    """
    terms = [term for base in named_bases(model).values() if (term := base.lasso()) is not None]
    if not terms:
        raise ConfigError("the model has no bases with ordered parts; transform(model, base='ordered', …) makes them")
    total = terms[0]
    for term in terms[1:]:
        total = total + term.to(total.device)
    return total
