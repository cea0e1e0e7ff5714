"""The nodes of graphs: `noble_fx::linear`, `noble_fx::linear_group` and their forms for inference."""

# Importing them registers the operators.
from noble_fx.ops import composite, cuda, decompose, flops, grouped, inference, linear, linear_group

__all__ = ["composite", "cuda", "decompose", "flops", "grouped", "inference", "linear", "linear_group"]
