"""Element types by the names that Pulsar2 gives them.

Source: AXERA-TECH/pulsar2-docs-en, `source/user_guides_config/config.md`, `DataType`.
"""

from typing import Any

import numpy as np

#: `src_dtype`, `output_dtype` or the type of a quantised tensor -> NumPy's type
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype(np.uint8),
    "S8": np.dtype(np.int8),
    "U16": np.dtype(np.uint16),
    "S16": np.dtype(np.int16),
    "U32": np.dtype(np.uint32),
    "S32": np.dtype(np.int32),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
}
