"""Models of frameworks that are no longer developed, turned into ONNX without those frameworks.

Needs numpy, protobuf and, while a model is turned, onnx (extra ``[import]``).
"""
