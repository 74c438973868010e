"""What is known of each model family. To add one: a file here, a row in FAMILIES, a paragraph in docs/families.md."""

from axbake.families.family import COMPONENTS, Component, Family, Layout, Shape, Shapes
from axbake.families.sd1 import SD1
from axbake.families.sd2 import SD2
from axbake.families.vae import VAE

FAMILIES = {family.name: family for family in (SD1, SD2)}

__all__ = ["COMPONENTS", "FAMILIES", "VAE", "Component", "Family", "Layout", "Shape", "Shapes"]
