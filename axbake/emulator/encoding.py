"""How numbers become integers: activations per tensor and asymmetric, weights per channel and symmetric."""

from dataclasses import dataclass

import numpy as np

from axbake.emulator.dtypes import DTYPES
from axbake.errors import AxbakeError

#: Types of quantised tensors
INTEGERS: dict[str, np.dtype[np.integer]] = {name: DTYPES[name] for name in ("U8", "S8", "U16", "S16")}
WEIGHT_LIMIT = 127  # S8, symmetric: -128 is not used
BIAS_LIMIT = 2**31 - 1  # S32
TINY = float(np.finfo(np.float32).tiny)  # smallest normal float32

# A tensor that reaches this far holds a mask's «minus infinity» (-3.4e38 in float32 attention masks), and no integer
# scale spans that and the values. Its layers stay in float, as Pulsar2 does by default: a field of its emitted
# configuration is called `disable_auto_set_extremum_op_fp32`.
EXTREMUM = 1e30


class RangeError(AxbakeError):
    """A tensor's range cannot be quantised."""


@dataclass(frozen=True)
class Encoding:
    """real value = (integer - zero_point) × scale, the integer being of *data_type*."""

    data_type: str
    scale: float  # a float32 value
    zero_point: int
    low: float  # calibrated range
    high: float


def is_extreme(low: float, high: float) -> bool:
    return max(abs(low), abs(high)) >= EXTREMUM


def encode_range(low: float, high: float, data_type: str) -> Encoding:
    """The asymmetric encoding that spans [*low*, *high*] and 0; an all-zero tensor gets scale 1."""
    if np.isnan(low) or np.isnan(high):
        raise RangeError(f"range [{low}, {high}]: NaN in the calibration run; check the float model on these samples")
    limits = np.iinfo(INTEGERS[data_type])
    bottom, top = min(low, 0.0), max(high, 0.0)
    # `TINY` keeps the scale of a nearly constant tensor from becoming 0.
    scale = float(np.float32(max((top - bottom) / (limits.max - limits.min), TINY)))
    if top == bottom:
        scale = 1.0
    zero_point = int(np.clip(np.rint(limits.min - bottom / scale), limits.min, limits.max))
    return Encoding(data_type, scale, zero_point, low, high)


def quantise(values: np.ndarray, encoding: Encoding) -> np.ndarray:
    """*values* as integers, rounded half to even as QuantizeLinear does."""
    limits = np.iinfo(INTEGERS[encoding.data_type])
    scaled = np.rint(values / np.float32(encoding.scale)) + encoding.zero_point
    return np.clip(scaled, limits.min, limits.max).astype(INTEGERS[encoding.data_type])


def weight_scales(values: np.ndarray, axis: int) -> np.ndarray:
    """Scale of each channel along *axis*: (channels,) float32. An all-zero channel takes the smallest other one."""
    others = tuple(index for index in range(values.ndim) if index != axis)
    largest = np.maximum(values.max(axis=others), -values.min(axis=others)).astype(np.float32)
    if not np.isfinite(largest).all():
        raise RangeError("weight holds infinity or NaN; check the checkpoint")
    rest = largest[largest > 0].min() if (largest > 0).any() else np.float32(WEIGHT_LIMIT)
    scales = np.where(largest > 0, largest, rest) / np.float32(WEIGHT_LIMIT)
    return np.maximum(scales, TINY).astype(np.float32)


def widened_scales(scales: np.ndarray, bias: np.ndarray, factor: float) -> np.ndarray:
    """*scales*, made larger where a channel's *bias* would overflow S32 at scale factor × weight scale.

    A channel with small weights and a large bias loses some of its weights' precision, and keeps its bias.
    """
    least = np.abs(bias.astype(np.float64)) / (factor * BIAS_LIMIT) * (1 + 1e-6)  # above float32's rounding of it
    return np.maximum(scales, least.astype(np.float32))


def quantise_weight(values: np.ndarray, scales: np.ndarray, axis: int) -> np.ndarray:
    """*values* as S8, symmetric, one scale a channel along *axis*."""
    shape = [-1 if index == axis else 1 for index in range(values.ndim)]
    scaled = np.rint(values / scales.reshape(shape))
    return np.clip(scaled, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8)


def quantise_bias(bias: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """*bias* as S32 in units of *scales*."""
    scaled = np.rint(bias.astype(np.float64) / scales.astype(np.float64))
    return np.clip(scaled, -BIAS_LIMIT, BIAS_LIMIT).astype(np.int32)
