"""A host emulator of AXERA's Pulsar2 compiler: `python -m axbake.emulator build|run|version`.

It takes Pulsar2's documented command line and configuration, quantises as Pulsar2 is documented to, and writes
Pulsar2's output layout. Its `.axmodel` is an ONNX graph with QuantizeLinear and DequantizeLinear nodes that ONNX
Runtime runs and no board can; producer name, doc string, metadata and log say so. `llm_build` is a program of its own,
`python -m axbake.emulator.llm_build`, so that what `build` makes does not depend on it.
"""

PRODUCER = "axbake-emulator"
