"""The ways to spread a budget, by name."""

from __future__ import annotations

from noble_fx.compressing.allocation.base import Allocation
from noble_fx.compressing.allocation.marginal import marginal
from noble_fx.compressing.allocation.threshold import threshold
from noble_fx.compressing.allocation.uniform import uniform

ALLOCATIONS: dict[str, Allocation] = {"marginal": marginal, "uniform": uniform, "welore": threshold}
