"""The model families. To add one: a file here that calls it FAMILY, a row in tests/tiny.py, a paragraph in docs/families.md."""

import importlib
import pkgutil

from axbake.families.family import Family


def _found() -> dict[str, Family]:
    modules = [importlib.import_module(f"{__name__}.{module.name}") for module in pkgutil.iter_modules(__path__)]
    families = [module.FAMILY for module in modules if hasattr(module, "FAMILY")]
    return {family.name: family for family in families}


#: Name -> family. Jobs do not look here: what a job needs of its family is in its settings.
FAMILIES = _found()
