"""A build by Pulsar2, AXERA's compiler, or by its emulator: started, read, and accepted only if its model is what was asked for.

Command line and outputs are those of AXERA-TECH/pulsar2-docs-en (`user_guides_advanced/advanced_build_guides.md`).
"""

import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from axbake.errors import AxbakeError
from axbake.preflight.verdict import check_build
from axbake.quality.recipe import read_recipe, with_recipe
from axbake.runtime.producer import EMULATOR
from axbake.toolchain.axmodel import CHIPS, PULSAR2, Axmodel, AxmodelError, read_axmodel
from axbake.toolchain.build_config import doubts
from axbake.toolchain.compiled_interface import wanted_interface
from axbake.toolchain.failures import explain
from axbake.toolchain.launch import WRITABLE, Launch, own_copy, says_version
from axbake.toolchain.process import TimeLimit
from axbake.toolchain.reading import BuildLog, read_context

logger = logging.getLogger(__name__)


class CompileError(AxbakeError):
    """The compiler failed, or did not make what was requested."""


def compile_model(
    graph: Path,
    tensors: Path,
    archive: Path,
    *,
    component: str,
    role: str,
    config: dict[str, Any],
    compiler: dict[str, str],
    launch: dict[str, Any],
    axmodel: Path,
    record: Path,
    recipe: Sequence[Path] = (),
) -> None:
    """Compile *graph* into *axmodel*, in a directory of copies of what Pulsar2 needs and nothing else.

    Args:
        tensors, archive: of the graph, and its calibration; copied under their own names.
        component: that it is of, or address of one of several graphs; *role*: the component's.
        config: Pulsar2's, whole (`axbake.toolchain.build_config`).
        compiler: what decides the build besides the inputs: Pulsar2's version, or the emulator's code and tools.
        launch: how it is started (`axbake.toolchain.launch.Launch`), which does not decide what it makes.
        recipe: of the component, if it has one (`axbake.quality.recipe`): its layers are added to the config.
        record: JSON to write: by what the model was made, whether it is emulated, and Pulsar2's own figures.

    Raises:
        PreflightError: what is known of Pulsar2 says that it would fail.
        RecipeError: the recipe does not fit the graph.
        WrongToolchain, EngineError: no such program, or another version.
        CompileError: Pulsar2 failed: what of, its own words and what to try; or its model is not what was asked for.
    """
    how = Launch(**launch)
    for path in recipe:
        config = with_recipe(config, read_recipe(path), component, graph)
    for doubt in doubts(config):
        logger.warning("%s: %s", component, doubt)
    check_build(component, role, graph, archive, config, toolchain=how.toolchain, place=axmodel.parent)
    version = how.check()
    place = axmodel.parent / "pulsar2"
    place.mkdir()
    settings = place / f"{axmodel.stem}.config.json"
    settings.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in (graph, tensors, archive):
        own_copy(path, place / path.name)
    command = ["build", "--input", graph.name, "--config", settings.name, "--output_dir", WRITABLE]
    log = BuildLog()
    try:
        status = how.call([*command, "--output_name", axmodel.name], place, log.hear)
    except TimeLimit as error:
        raise CompileError(
            f"{component}: {how.toolchain} reached its time limit of {how.minutes:g} minutes, while "
            f"{log.stage or 'starting'}. Raise time_limit in config/config.yaml, or calibrate with fewer samples "
            "(calibration/samples)."
        ) from error
    made, context = place / WRITABLE / axmodel.name, read_context(place / WRITABLE / "build_context.json")
    code, said = str(context.get("code", "")), str(context.get("error_msg") or "")
    if status or not made.is_file() or code not in ("", "Success"):
        lines = list(log.last)
        raise CompileError(
            explain(component, toolchain=how.toolchain, status=status, code=code, said=said, lines=lines)
        )
    accept(made, graph, config, emulated=how.toolchain == "emulator", version=compiler.get("pulsar2", ""))
    made.rename(axmodel)
    content = {
        "component": component,
        "toolchain": how.toolchain,
        "emulated": how.toolchain == "emulator",
        "version": version,
        "bytes": axmodel.stat().st_size,
        "pulsar2_config": config,
        "macs": context.get("macs"),
        "max_cycle": log.cycles,  # of the NPU, a run, by Pulsar2's own estimate
        "io_info": context.get("io_info"),
    }
    record.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    shutil.rmtree(place)


def accept(made: Path, graph: Path, settings: dict[str, Any], *, emulated: bool, version: str) -> None:
    """Raise CompileError unless the model *made* is what was asked for.

    Args:
        graph: that was compiled.
        settings: Pulsar2's config.
        version: of Pulsar2 that it must be made by; an emulated model has none.
    """
    try:
        found = read_axmodel(made)
    except AxmodelError as error:
        raise CompileError(str(error)) from error
    faults = _origin_faults(found, settings, EMULATOR if emulated else PULSAR2, version) + _interface_faults(
        found, graph, settings
    )
    if faults:
        raise CompileError(f"{made.stem}: the compiled model is not what was requested: {'; '.join(faults)}.")


def _origin_faults(found: Axmodel, settings: dict[str, Any], producer: str, version: str) -> list[str]:
    """What *found* was made by and for, where that is not what was asked for."""
    faults = []
    if found.producer != producer:
        faults.append(f"producer {found.producer!r}, wanted {producer!r}")
    if version and not says_version(found.version, version):
        faults.append(f"Pulsar2 {found.version or 'without a version'}, wanted {version}")
    if settings["target_hardware"] in CHIPS.values() or found.producer == EMULATOR:
        for name, built in (("target_hardware", found.hardware), ("npu_mode", found.npu_mode)):
            if built != settings[name]:
                faults.append(f"{name} {built or 'not said'}, wanted {settings[name]}")
    else:
        logger.warning(
            "it is not known how models name %s, so axbake does not check that this model is for it",
            settings["target_hardware"],
        )
    return faults


def _interface_faults(found: Axmodel, graph: Path, settings: dict[str, Any]) -> list[str]:
    inputs, outputs = wanted_interface(graph, settings)
    faults = []
    for what, has, wants in (("input", found.inputs, inputs), ("output", found.outputs, outputs)):
        for name in sorted(set(has) | set(wants)):
            if name not in has or name not in wants:
                faults.append(f"{what} {name}: {'not wanted' if name in has else 'missing'}")
            elif has[name] != wants[name]:
                faults.append(f"{what} {name}: {has[name]}, wanted {wants[name]}")
    return faults
