"""diffusers' pipelines that draw the reference: of networks that are there, with embedded prompts."""

from typing import Any

from axbake.networks.component import Module


def stable_diffusion(denoiser: Module, decoder: Module, scheduler: Any, *, decoder_config: dict) -> Any:
    """`StableDiffusionPipeline` without text encoder and tokenizer; it takes embedded prompts, and no images.

    Args:
        decoder: half of the autoencoder of *decoder_config*; the other half is not there.
    """
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=_autoencoder_of(decoder, decoder_config),
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


def stable_diffusion_xl(denoiser: Module, decoder: Module, scheduler: Any, *, decoder_config: dict) -> Any:
    """`StableDiffusionXLPipeline` without text encoders and tokenizers; it takes embedded and pooled prompts, and no images.

    Args:
        decoder: half of the autoencoder of *decoder_config*; the other half is not there.
    """
    from diffusers import StableDiffusionXLPipeline

    pipeline = StableDiffusionXLPipeline(
        vae=_autoencoder_of(decoder, decoder_config),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=denoiser,
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def inpainting(denoiser: Module, decoder: Module, scheduler: Any, *, decoder_config: dict, encoder: Module) -> Any:
    """`StableDiffusionInpaintPipeline` without text encoder and tokenizer; it takes embedded prompts, a picture and a mask.

    Args:
        decoder, encoder: halves of the autoencoder of *decoder_config*.
    """
    from diffusers import StableDiffusionInpaintPipeline

    pipeline = StableDiffusionInpaintPipeline(
        vae=_autoencoder_of(decoder, decoder_config, encoder),
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


def inpainting_xl(denoiser: Module, decoder: Module, scheduler: Any, *, decoder_config: dict, encoder: Module) -> Any:
    """`StableDiffusionXLInpaintPipeline` likewise; it takes pooled prompts too.

    Args:
        decoder, encoder: halves of the autoencoder of *decoder_config*.
    """
    from diffusers import StableDiffusionXLInpaintPipeline

    pipeline = StableDiffusionXLInpaintPipeline(
        vae=_autoencoder_of(decoder, decoder_config, encoder),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=denoiser,
        scheduler=scheduler,
        add_watermarker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _autoencoder_of(decoder: Module, config: dict, encoder: Module | None = None) -> Any:
    """The autoencoder of *config* with *decoder*, and *encoder* if it is there, as its halves."""
    import torch

    from axbake.networks.autoencoder import autoencoder

    with torch.device("meta"):
        vae = autoencoder(config)
    for name in dict(vae.named_children()):
        setattr(vae, name, getattr(decoder, name, None) or getattr(encoder, name, None))
    return vae.eval()
