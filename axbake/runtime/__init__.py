"""Text to image with compiled models: NumPy, Pillow, tokenizers, and ONNX Runtime where a model is an ONNX graph.

A bundle carries this package as it is to the machine beside the accelerator card, so it knows nothing of torch, of
diffusers or of the rest of axbake, and runs on Python 3.9.
"""
