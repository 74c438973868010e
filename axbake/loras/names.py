"""Names that LoRAs call a network's modules by."""

import re

from axbake.networks.component import Shapes
from axbake.networks.names import ldm_unet_name


def spellings(component: str, shapes: Shapes) -> dict[str, str]:
    """Every name that files give a network's modules, dots as underscores -> diffusers' name of the module.

    Args:
        shapes: of the network's tensors, by diffusers' names.
    """
    table: dict[str, str] = {}
    for module in sorted(name.removesuffix(".weight") for name in shapes if name.endswith(".weight")):
        for name in _names_of(component, module):
            spelt = name.replace(".", "_")
            assert table.setdefault(spelt, module) == module, f"{spelt}: {table[spelt]} or {module}"
    return table


def _names_of(component: str, module: str) -> list[str]:
    if component == "unet":
        return [module, ldm_unet_name(f"{module}.weight").removesuffix(".weight"), _of_processor(module, "to_out.0")]
    # The attention processors called its projections as diffusers' own. transformers 5 leaves out `text_model`.
    processor = _of_processor(re.sub(r"self_attn\.([qkv])_proj", r"self_attn.to_\1", module), "out_proj")
    return [f"{start}{name}" for start in ("text_model.", "") for name in (module, processor)]


def _of_processor(module: str, last: str) -> str:
    return f"{module.removesuffix(last)}to_out" if module.endswith(f".{last}") else module
