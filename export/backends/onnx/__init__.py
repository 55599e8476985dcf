"""ONNX, run by ONNX Runtime."""

KIND = "onnx"
