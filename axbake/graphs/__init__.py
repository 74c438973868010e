"""ONNX graphs: what each takes and gives (`interface`), their export, and whether they compute what torch does (`parity`)."""
