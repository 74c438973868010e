"""diffusers' pipelines that draw the reference: of networks that are there, with embedded prompts."""

from typing import Any

from axbake.networks.component import Module


def stable_diffusion(denoiser: Module, decoder: Module, scheduler: Any, *, decoder_config: dict) -> Any:
    """`StableDiffusionPipeline` without text encoder and tokenizer; it takes embedded prompts, and no images.

    Args:
        decoder: half of the autoencoder of *decoder_config*; the other half is not there.
    """
    import torch
    from diffusers import StableDiffusionPipeline

    from axbake.networks.autoencoder import autoencoder

    with torch.device("meta"):
        vae = autoencoder(decoder_config)
    for name in dict(vae.named_children()):
        setattr(vae, name, getattr(decoder, name, None))
    pipeline = StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        unet=denoiser,
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
