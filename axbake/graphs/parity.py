"""Whether an ONNX graph computes what the torch network does."""

import gc
import json
import logging
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from axbake.checkpoints import components
from axbake.checkpoints.weights import Description, read_description
from axbake.drawing.distance import psnr
from axbake.errors import AxbakeError
from axbake.graphs.interface import TIME_INPUT, TIMESTEP_INPUT, TOKENS

logger = logging.getLogger(__name__)
SEED = 0
TIMESTEP = 500  # in the middle of the noise levels


class ParityError(AxbakeError):
    """A graph is too far from its network."""


def check_parity(
    weights: Path,
    graph: Path,
    tensors: Path,
    *,
    min_psnr: float,
    parity: Path,
    height: int | None = None,
    width: int | None = None,
    prompt_chunks: int = 1,
) -> None:
    """Run *graph* in ONNX Runtime and its network in torch on the same seeded inputs; write the distance to *parity*.

    Torch runs the network as it was trained: the UNet with its time embedding, the text encoder with its own causal mask.

    Args:
        tensors: of the graph, beside it under the name by which it refers to them.
        min_psnr: least PSNR of the output, in dB.
        height, width: image pixels; the text encoder has none.
        prompt_chunks: chunks of 77 tokens in the UNet's context.

    Raises:
        ParityError: the output is farther away. Nothing is written then.
    """
    description = read_description(weights)
    arrays, wanted = _run_torch(weights, description, height=height, width=width, prompt_chunks=prompt_chunks)
    gc.collect()  # torch's copy of the weights goes before ONNX Runtime loads its own
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    output = session.get_outputs()[0].name
    names = [node.name for node in session.get_inputs()]
    # What only one component takes has a name of the target's program.
    inputs = {name: arrays[name] if len(arrays) > 1 else next(iter(arrays.values())) for name in names}
    (found,) = session.run([output], inputs)
    decibels = psnr(wanted, found)
    result = {
        "component": description.component,
        "compared": "ONNX Runtime against torch, float32",
        "output": output,
        "psnr_db": round(decibels, 2),
        "largest_error": float(np.abs(wanted - found).max()),
        "min_psnr_db": min_psnr,
    }
    if decibels < min_psnr:
        raise ParityError(
            f"{description.component}: onnx against torch is {decibels:.1f} dB, below the {min_psnr:g} dB of config"
            f" parity/min_psnr/{description.component}; output: {output}. The graph is not the network; do not bake it."
        )
    logger.info("%s: onnx against torch is %.1f dB", description.component, decibels)
    parity.write_text(json.dumps(result, indent=1) + "\n")


def _run_torch(
    weights: Path, description: Description, *, height: int | None, width: int | None, prompt_chunks: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Seeded inputs of the graph by name, and what the network makes of them; of the UNet the time in both forms."""
    generator = torch.Generator().manual_seed(SEED)
    network = components.load(weights)
    with torch.inference_mode():
        if description.component == "text_encoder":
            ids = torch.randint(0, description.config["vocab_size"], (1, TOKENS), generator=generator)
            return {"input_ids": ids.numpy()}, network(ids).last_hidden_state.numpy()
        assert height and width
        if description.component == "vae_encoder":
            image = torch.rand((1, 3, height, width), generator=generator) * 2 - 1
            return {"image_sample": image.numpy()}, network(image).numpy()
        latent = torch.randn((1, 4, height // 8, width // 8), generator=generator)
        if description.component == "vae_decoder":
            return {"latent": latent.numpy()}, network(latent).numpy()
        context = torch.randn(
            (1, prompt_chunks * TOKENS, description.config["cross_attention_dim"]), generator=generator
        )
        time = torch.tensor([TIMESTEP], dtype=torch.int32)
        row = torch.nn.functional.silu(network.time_embedding(network.get_time_embed(latent, time)))
        output = network(latent, time, context, return_dict=False)[0]
        time_inputs = {TIME_INPUT: row.numpy(), TIMESTEP_INPUT: time.numpy()}
        return {"sample": latent.numpy(), "encoder_hidden_states": context.numpy(), **time_inputs}, output.numpy()
