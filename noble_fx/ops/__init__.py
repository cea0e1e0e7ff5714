"""The nodes of graphs: `noble_fx::linear`, `noble_fx::linear_group` and their forms for inference."""

from noble_fx.ops import cuda, flops, grouped, inference, linear, linear_group  # importing them registers the operators

__all__ = ["cuda", "flops", "grouped", "inference", "linear", "linear_group"]
