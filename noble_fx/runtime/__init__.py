"""What runs: the operators, and exported models."""

from noble_fx.runtime import cuda_operator, dynamo_backend, operator
from noble_fx.runtime.group_operator import eager_linear_group
from noble_fx.runtime.onnx_model import OnnxModel
from noble_fx.schema import LINEAR, LINEAR_GROUP

DECOMPOSITIONS = {LINEAR: operator.eager_linear, LINEAR_GROUP: eager_linear_group}
"""Each operator of this project in PyTorch's own: what an exporter that does not know them takes."""

__all__ = ["DECOMPOSITIONS", "OnnxModel", "cuda_operator", "dynamo_backend", "operator"]
