"""The nodes of graphs: `noble_fx::linear`, its kin, and their forms for inference."""

# Importing them registers the operators.
from noble_fx.ops import (
    composite,
    cuda,
    decompose,
    factorized,
    factorized_cuda,
    flops,
    grouped,
    inference,
    linear,
    linear_group,
)

__all__ = [
    "composite",
    "cuda",
    "decompose",
    "factorized",
    "factorized_cuda",
    "flops",
    "grouped",
    "inference",
    "linear",
    "linear_group",
]
