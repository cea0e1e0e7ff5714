"""From an activation to code: traced to aten, differentiated by PyTorch."""
