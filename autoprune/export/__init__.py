"""Files that leave a search: models in ONNX, TorchScript, PT2, OpenVINO or packed weights, proven, with a script."""
