"""Language models of tiny models, built in layers by the emulator or by the double of Pulsar2, for tests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from axbake.networks.card_layers import files_on_card
from axbake.networks.component import Component
from axbake.runtime.language import LanguageFormat
from axbake.toolchain.llm_build import build_layers
from tests.decoder import LAUNCH, compiler

TOKENS = 48  # of a prompt; the families' own 512 take ten times as long


def form_of(component: Component) -> LanguageFormat:
    """How its language model is given prompts, of fewer tokens than its family's."""
    assert component.language
    return replace(component.language, tokens=TOKENS)


def build(
    model: Any, folder: Path, *, toolchain: str = "emulator", name: str = "text_encoder", **how: Any
) -> list[Path]:
    """The language model *name* of a tiny *model*, built in *folder*: the files that are opened, in their order.

    Args:
        how: arguments of `build_layers`, or entries of how the compiler is started, that are not as usual.
    """
    component = model.family.component(name)
    described, table, *axmodels = [folder / file for file in files_on_card(name, component.card)]
    described.parent.mkdir(parents=True)
    (folder / "build").mkdir()
    launch = {key: how.pop(key) for key in ("minutes",) if key in how}
    given = {
        "component": name,
        "card": component.card,
        "format": form_of(component),
        "chip": "AX650",
        "compiler": compiler(toolchain),
        "launch": LAUNCH | {"toolchain": toolchain} | launch,
        "parallel": 1,
    }
    build_layers(
        model.weights[name],
        model.embeddings,
        **given | how,
        described=described,
        table=table,
        axmodels=axmodels,
        record=folder / "build" / f"{name}.json",
    )
    return [described, table, *axmodels]
