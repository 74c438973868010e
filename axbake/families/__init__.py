"""What is known of each model family. To add one: a file here, a row in FAMILIES, a paragraph in docs/families.md."""

from axbake.families.family import COMPONENTS, Component, Family, Shape, Shapes
from axbake.families.sd1 import SD1

FAMILIES = {family.name: family for family in (SD1,)}

__all__ = ["COMPONENTS", "FAMILIES", "Component", "Family", "Shape", "Shapes"]
