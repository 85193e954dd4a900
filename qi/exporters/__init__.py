"""Files for runtimes: integer graphs written as LiteRT and ONNX models, checked against the runtimes themselves."""
