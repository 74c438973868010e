"""How far two tensors or pictures are apart."""

import numpy as np
from skimage.metrics import structural_similarity

IDENTICAL = 200.0  # dB, said of equal tensors: float32 cannot differ by so little, and JSON has no infinity


def psnr(reference: np.ndarray, other: np.ndarray, *, peak: float | None = None) -> float:
    """Peak signal-to-noise ratio of *other* against *reference* in dB, at most `IDENTICAL`.

    Args:
        peak: range of values; by default that of the reference, highest minus lowest. 255 for pictures.
    """
    wanted, found = reference.astype(np.float64), other.astype(np.float64)
    error = np.mean((wanted - found) ** 2)
    span = float(np.ptp(wanted)) if peak is None else peak
    if error == 0:
        return IDENTICAL
    if not np.isfinite(error) or span == 0:
        return 0.0
    return float(min(IDENTICAL, 20 * np.log10(span) - 10 * np.log10(error)))


def ssim(reference: np.ndarray, other: np.ndarray) -> float:
    """Structural similarity of two (H, W, 3) uint8 pictures, 1 for equal ones (Wang et al. 2004, as scikit-image has it)."""
    return float(structural_similarity(reference, other, channel_axis=2, data_range=255))
