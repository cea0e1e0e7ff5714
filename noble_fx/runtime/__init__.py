"""What runs: the operators, and exported models."""

from noble_fx.runtime import cuda_operator, dynamo_backend, group_operator, inference, operator
from noble_fx.runtime.onnx_model import OnnxModel

__all__ = ["OnnxModel", "cuda_operator", "dynamo_backend", "group_operator", "inference", "operator"]
