"""Stable Diffusion 3.5 large with T5."""

from axbake.families import sd35_large
from axbake.families.sd3_t5 import with_t5

FAMILY = with_t5(sd35_large.FAMILY, "sd35_large_t5")
