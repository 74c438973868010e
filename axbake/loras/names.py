"""Names that LoRAs call a network's modules by."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from axbake.networks.component import Files, Shapes


@dataclass(frozen=True)
class Target:
    """A module that a LoRA's module changes, or rows of it: of files that have several modules as one."""

    module: str  # diffusers' name
    first: int = 0  # number of the first of *parts* equal parts of the LoRA's rows that are the module's
    span: int = 1  # how many parts
    parts: int = 1


def own_names(files: Files, component: str, names: Mapping[str, Iterable[str]]) -> list[str]:
    """Of the *names* of modules in a LoRA file, by component, a component's own.

    Args:
        files: of the *component*.
    """
    around, starts = files.lora_within or (component, ("",))
    return [name for name in names.get(around, ()) if name.startswith(starts) and not name.startswith(files.lora_apart)]


def spellings(files: Files, shapes: Shapes) -> dict[str, tuple[Target, ...]]:
    """Every name that LoRAs give a network's modules, dots as underscores -> the modules.

    Args:
        files: of the network's component.
        shapes: of its tensors, by diffusers' names.
    """
    table: dict[str, tuple[Target, ...]] = {}
    if files.lora_names is None:
        return table
    modules = sorted(name.removesuffix(".weight") for name in shapes if name.endswith(".weight"))
    for module in modules:
        for name in files.lora_names(module):
            spelt = name.replace(".", "_")
            assert table.setdefault(spelt, (Target(module),)) == (Target(module),), f"{spelt}: {table[spelt]}, {module}"
    for name, several in (files.lora_modules(shapes) if files.lora_modules else {}).items():
        if set(several) <= set(modules):
            targets = tuple(
                Target(module, several.index(module), several.count(module), len(several))
                for module in dict.fromkeys(several)
            )
            table.setdefault(name.replace(".", "_"), targets)
    return table
