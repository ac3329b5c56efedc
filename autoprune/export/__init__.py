"""Files that leave a search: models in ONNX, TorchScript, PT2 or OpenVINO, proven equal to PyTorch, with a script."""
