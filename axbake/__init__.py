"""axbake bakes Stable Diffusion checkpoints into `.axmodel` files for AXERA's AX8850/AX650N NPU."""

__version__ = "0.1.0"
