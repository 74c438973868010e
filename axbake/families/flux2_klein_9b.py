"""FLUX.2 [klein] 9B: the same with Qwen3-8B, and a transformer of 8 + 24 wider blocks."""

from dataclasses import replace

from axbake.families import flux2_klein
from axbake.networks import flux2, language
from axbake.networks.component import GRAPH_WEIGHTS, Shapes
from axbake.networks.transformer_slices import Structure

WIDTH, TOKEN_CHANNELS = 4096, 12288
TEXT_GRAPHS = 9
#: What decides the number of its weights
CONFIG = flux2_klein.CONFIG | {
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": WIDTH // flux2.HEAD_WIDTH,
    "joint_attention_dim": TOKEN_CHANNELS,
}
STRUCTURE = Structure(CONFIG, flux2.BLOCKS)
TEXT, DENOISER, *AUTOENCODER = flux2_klein.FAMILY.components


def fits(denoiser: Shapes) -> bool:
    """By the number of its blocks; the distilled one and the base have the same."""
    return (
        "double_stream_modulation_img.linear.weight" in denoiser
        and "transformer_blocks.7.attn.to_q.weight" in denoiser
        and "single_transformer_blocks.24.attn.to_out.weight" not in denoiser
        and "time_guidance_embed.guidance_embedder.linear_1.weight" not in denoiser
    )


FAMILY = replace(
    flux2_klein.FAMILY,
    name="flux2_klein_9b",
    title="FLUX.2 [klein] 9B",
    fits=fits,
    components=(
        replace(
            TEXT,
            graphs=language.slices("text_encoder", TEXT_GRAPHS, form=flux2_klein.FORMAT, states=flux2_klein.STATES),
        ),
        replace(DENOISER, graphs=STRUCTURE.slices(GRAPH_WEIGHTS)),
        *AUTOENCODER,
    ),
    structure=STRUCTURE,
)
