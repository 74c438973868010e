"""Stable Diffusion 3.5 medium with T5."""

from axbake.families import sd35_medium
from axbake.families.sd3_t5 import with_t5

FAMILY = with_t5(sd35_medium.FAMILY, "sd35_medium_t5")
