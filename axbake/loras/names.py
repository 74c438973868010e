"""Names that LoRAs call a network's modules by."""

from axbake.networks.component import Files, Shapes


def spellings(files: Files, shapes: Shapes) -> dict[str, str]:
    """Every name that LoRAs give a network's modules, dots as underscores -> diffusers' name of the module.

    Args:
        files: of the network's component.
        shapes: of its tensors, by diffusers' names.
    """
    table: dict[str, str] = {}
    if files.lora_names is None:
        return table
    for module in sorted(name.removesuffix(".weight") for name in shapes if name.endswith(".weight")):
        for name in files.lora_names(module):
            spelt = name.replace(".", "_")
            assert table.setdefault(spelt, module) == module, f"{spelt}: {table[spelt]} or {module}"
    return table
