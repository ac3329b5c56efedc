"""Everything that writes or edits an ONNX graph."""
