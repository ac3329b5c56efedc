"""What leaves the search: ONNX files, proven equal to PyTorch and timed beside the dense model."""
