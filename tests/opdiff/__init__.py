"""Random single operators and short chains, read by mucg4 and run by onnxruntime: `python -m tests.opdiff`."""
