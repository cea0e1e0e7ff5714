"""The nodes of graphs: `noble_fx::linear`, `noble_fx::linear_group` and their forms for inference."""

# Importing them registers the operators.
from noble_fx.ops import composite, cuda, flops, grouped, inference, linear, linear_group

__all__ = ["composite", "cuda", "flops", "grouped", "inference", "linear", "linear_group"]
