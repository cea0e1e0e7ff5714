"""What runs: the operator, and exported models."""

from noble_fx.runtime import dynamo_backend, inference, operator
from noble_fx.runtime.onnx_model import OnnxModel

__all__ = ["OnnxModel", "dynamo_backend", "inference", "operator"]
