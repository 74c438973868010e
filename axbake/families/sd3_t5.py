"""Stable Diffusion 3 medium with T5, which the board's host runs: its tokens stand behind those of the CLIPs."""

from dataclasses import replace

from axbake.families import sd3
from axbake.families.family import Family
from axbake.networks import mmdit, t5
from axbake.networks.component import DENOISER, GRAPH_WEIGHTS, TEXT, Component, Files
from axbake.networks.transformer_slices import Structure
from axbake.runtime.language import PLACE, LanguageFormat
from axbake.runtime.values import Conditioning

TEXT_GRAPHS = 6
ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")
T5 = Component(
    name=ENCODERS[-1],
    role=TEXT,
    files=Files(t5.NAMINGS, t5.config, ENCODERS[-1], f"{ENCODERS[-1]}."),
    build=t5.build,
    graphs=t5.slices(TEXT_GRAPHS, tokens=mmdit.T5_TOKENS),
    columns=(),
    width=t5.width,
    states=t5.states,
    language=LanguageFormat(PLACE, tokens=mmdit.T5_TOKENS, pad="<pad>", folder="tokenizer_3"),
    host=True,
    example=t5.example,
)


def with_t5(family: Family, name: str) -> Family:
    """*family* with T5 as a third text encoder, called *name*."""
    assert isinstance(family.structure, Structure)
    structure = replace(family.structure, blocks=mmdit.T5_BLOCKS)
    first, second, *others = (
        replace(one, graphs=structure.slices(GRAPH_WEIGHTS)) if one.role == DENOISER else one
        for one in family.components
    )
    return replace(
        family,
        name=name,
        title=f"{family.title} with T5",
        components=(first, second, T5, *others),
        conditioning=Conditioning(ENCODERS, pooled=" ".join(ENCODERS[:2]), width=sd3.TOKEN_CHANNELS),
        structure=structure,
    )


FAMILY = with_t5(sd3.FAMILY, "sd3_t5")
