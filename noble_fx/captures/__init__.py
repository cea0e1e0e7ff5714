"""From a model to graphs: the user's modules, symbolic tracing, torch.export, Dynamo."""

from noble_fx.captures.base import Capture, Examples, Plan
from noble_fx.captures.table import captured, register_capture

__all__ = ["Capture", "Examples", "Plan", "captured", "register_capture"]
