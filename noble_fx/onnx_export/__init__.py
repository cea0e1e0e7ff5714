"""The way from a model to an ONNX file, step by step: capture, prepare, functions, write, verify, report."""
