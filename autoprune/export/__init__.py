"""What leaves the search: a model in ONNX, TorchScript, PT2 or OpenVINO, proven equal to PyTorch, and how to run it."""
