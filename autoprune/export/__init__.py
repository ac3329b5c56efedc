"""What leaves the search: ONNX files, proven equal to PyTorch."""
