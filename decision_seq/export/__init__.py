"""A trained agent for where this package is not: ONNX, PyTorch programs, C, a page, the hub."""
