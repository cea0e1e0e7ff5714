"""Training rules: what is done to gradients before a step, and to values after it."""

from noble_fx.training.rules.base import Rule as Rule
from noble_fx.training.rules.frozen_slices import FrozenSlices as FrozenSlices
from noble_fx.training.rules.gates import Gates as Gates
from noble_fx.training.rules.lora_pro import LoraPro as LoraPro
from noble_fx.training.rules.preconditioned import Preconditioned as Preconditioned
from noble_fx.training.rules.prefix import Prefix as Prefix
