"""How far two tensors or pictures are apart."""

import numpy as np

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
    # Here, since it takes a second, and figures of tensors do without.
    from skimage.metrics import structural_similarity

    return float(structural_similarity(reference, other, channel_axis=2, data_range=255))


def sqnr(reference: np.ndarray, other: np.ndarray) -> float:
    """Signal to quantisation noise of *other* against *reference*: of their powers, in dB, at most `IDENTICAL`."""
    wanted, found = reference.astype(np.float64), other.astype(np.float64)
    signal, noise = float(np.mean(wanted**2)), float(np.mean((wanted - found) ** 2))
    if noise == 0:
        return IDENTICAL
    if signal == 0 or not np.isfinite(noise):
        return -IDENTICAL
    return float(np.clip(10 * np.log10(signal / noise), -IDENTICAL, IDENTICAL))


def cosine(reference: np.ndarray, other: np.ndarray) -> float:
    """Cosine of the angle between two tensors: 1 for the same direction; 0 where one is all zeros or not finite."""
    wanted, found = reference.astype(np.float64).ravel(), other.astype(np.float64).ravel()
    length = float(np.linalg.norm(wanted) * np.linalg.norm(found))
    return float(wanted @ found / length) if length and np.isfinite(length) else 0.0
