"""diffusers' pipelines that draw the reference: of networks that are there, with embedded prompts.

They have no text encoders and tokenizers. Each function takes denoiser, decoder and scheduler, the `decoder_config` of the
autoencoder that the decoder is half of, and as `encoder` its other half, if the pipeline takes pictures.
"""

from typing import Any

from axbake.networks.component import Module
from axbake.networks.sampling import guided_steps

#: What the pipelines do without
ALONE = {"text_encoder": None, "tokenizer": None}
SD = ALONE | {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
SD3 = ALONE | {f"{part}_{number}": None for part in ("text_encoder", "tokenizer") for number in (2, 3)}
NO_GUIDANCE = -1.0  # `ZImagePipeline`'s truncation that is before all times
XL = ALONE | {"text_encoder_2": None, "tokenizer_2": None, "add_watermarker": False}


def stable_diffusion(*networks: Any, **halves: Any) -> Any:
    """`StableDiffusionPipeline`; it takes no pictures."""
    from diffusers import StableDiffusionPipeline

    return _pipeline(StableDiffusionPipeline, SD, *networks, **halves)


def stable_diffusion_xl(*networks: Any, **halves: Any) -> Any:
    """`StableDiffusionXLPipeline`; it takes pooled prompts too, and no pictures."""
    from diffusers import StableDiffusionXLPipeline

    return _pipeline(StableDiffusionXLPipeline, XL, *networks, **halves)


def inpainting(*networks: Any, **halves: Any) -> Any:
    """`StableDiffusionInpaintPipeline`; it takes a picture and a mask."""
    from diffusers import StableDiffusionInpaintPipeline

    return _pipeline(StableDiffusionInpaintPipeline, SD, *networks, **halves)


def inpainting_xl(*networks: Any, **halves: Any) -> Any:
    """`StableDiffusionXLInpaintPipeline` likewise; it takes pooled prompts too."""
    from diffusers import StableDiffusionXLInpaintPipeline

    return _pipeline(StableDiffusionXLInpaintPipeline, XL, *networks, **halves)


def instruct(*networks: Any, **halves: Any) -> Any:
    """`StableDiffusionInstructPix2PixPipeline`; it takes a picture, whose size decides the size that it draws."""
    from diffusers import StableDiffusionInstructPix2PixPipeline

    return _pipeline(StableDiffusionInstructPix2PixPipeline, SD, *networks, **halves)


def instruct_xl(*networks: Any, **halves: Any) -> Any:
    """`StableDiffusionXLInstructPix2PixPipeline` likewise; it takes pooled prompts too.

    As of diffusers 0.42 it has an older kind of callback than the others (`callback`); this one has theirs.
    """
    from diffusers import StableDiffusionXLInstructPix2PixPipeline

    class WithCallback(StableDiffusionXLInstructPix2PixPipeline):
        def __call__(self, *, callback_on_step_end: Any, **given: Any) -> Any:
            def tell(step: int, timestep: Any, latents: Any) -> None:
                callback_on_step_end(self, step, timestep, {"latents": latents})

            return super().__call__(callback=tell, **given)

    return _pipeline(WithCallback, XL, *networks, **halves)


def stable_diffusion_3(*networks: Any, **halves: Any) -> Any:
    """`StableDiffusion3Pipeline`; it takes pooled prompts too, and no pictures."""
    from diffusers import StableDiffusion3Pipeline

    return _pipeline(StableDiffusion3Pipeline, SD3, *networks, denoises="transformer", **halves)


def flux_1(*networks: Any, **halves: Any) -> Any:
    """`FluxPipeline`; it takes no pictures.

    A transformer that takes the guidance scale has no other guidance; of the others it is what diffusers calls
    `true_cfg_scale`. Its latents are tokens; the callback is given them as a picture.
    """
    from diffusers import FluxPipeline

    from axbake.networks.flux1_modules import picture_of_packed

    class WithPictures(FluxPipeline):
        def __call__(
            self, *, callback_on_step_end: Any, height: int, width: int, guidance_scale: float, **given: Any
        ) -> Any:
            def tell(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
                picture = picture_of_packed(tensors["latents"], height // 8, width // 8)
                callback_on_step_end(pipeline, step, timestep, {"latents": picture})
                return tensors

            embedded = self.transformer.config.guidance_embeds
            scale = {"guidance_scale" if embedded else "true_cfg_scale": guidance_scale}
            return super().__call__(callback_on_step_end=tell, height=height, width=width, **scale, **given)

    without = ALONE | {"text_encoder_2": None, "tokenizer_2": None}
    return _pipeline(WithPictures, without, *networks, denoises="transformer", **halves)


def flux_2_klein(*networks: Any, **halves: Any) -> Any:
    """`Flux2KleinPipeline`; it takes no pictures, and draws with guidance if the scale is above 1."""
    from diffusers import Flux2KleinPipeline

    return _flux_2(Flux2KleinPipeline, *networks, **halves)


def flux_2_dev(*networks: Any, **halves: Any) -> Any:
    """`Flux2Pipeline`; it takes no pictures and no negative prompts, and its transformer takes the guidance scale."""
    from diffusers import Flux2Pipeline

    class WithoutNegative(Flux2Pipeline):
        def __call__(self, *, negative_prompt_embeds: Any = None, **given: Any) -> Any:
            return super().__call__(**given)

    return _flux_2(WithoutNegative, *networks, **halves)


def _flux_2(kind: Any, *networks: Any, **halves: Any) -> Any:
    """A pipeline of the class *kind*, whose latents are tokens; the callback is given them as a picture."""

    class WithPictures(kind):
        def __call__(self, *, callback_on_step_end: Any, height: int, width: int, **given: Any) -> Any:
            sides = height // 16, width // 16

            def tell(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
                picture = tensors["latents"].transpose(1, 2).unflatten(2, sides)
                callback_on_step_end(pipeline, step, timestep, {"latents": picture})
                return tensors

            return super().__call__(callback_on_step_end=tell, height=height, width=width, **given)

    return _pipeline(WithPictures, ALONE, *networks, denoises="transformer", **halves)


def qwen_image(*networks: Any, **halves: Any) -> Any:
    """`QwenImagePipeline`; it takes no pictures.

    It is given the tokens that count. Its latents are tokens; the callback is given them as a picture.
    """
    import torch
    from diffusers import QwenImagePipeline

    from axbake.networks.flux1_modules import picture_of_packed

    class WithPictures(QwenImagePipeline):
        def __call__(
            self, *, callback_on_step_end: Any, height: int, width: int, guidance_scale: float, **given: Any
        ) -> Any:
            def tell(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
                picture = picture_of_packed(tensors["latents"], height // 8, width // 8)
                callback_on_step_end(pipeline, step, timestep, {"latents": picture})
                return tensors

            texts = {}
            for which in ("", "negative_"):
                if f"{which}prompt_mask" in given:
                    counts = given.pop(f"{which}prompt_mask")[0] > 0
                    texts[f"{which}prompt_embeds"] = given.pop(f"{which}prompt_embeds")[:, counts]
                    texts[f"{which}prompt_embeds_mask"] = torch.ones((1, int(counts.sum())))
            return super().__call__(
                callback_on_step_end=tell, height=height, width=width, true_cfg_scale=guidance_scale, **texts, **given
            )

    pipeline = _pipeline(WithPictures, ALONE, *networks, denoises="transformer", **halves)
    pipeline.vae.encoder = pipeline.vae.encoder or torch.nn.Module()
    return pipeline


def z_image(*networks: Any, **halves: Any) -> Any:
    """`ZImagePipeline`; it takes no pictures.

    It is given the language model's states. Its guidance adds to what the prompt gives, where
    others add to what the negative prompt does, so its scale is one less. Its own `cfg_truncation` is a time; guidance is left
    out from the step on that a share of the steps says.
    """
    from diffusers import ZImagePipeline

    class WithStates(ZImagePipeline):
        def __call__(
            self,
            *,
            guidance_scale: float,
            num_inference_steps: int,
            callback_on_step_end: Any,
            cfg_trunc_ratio: float = 1.0,
            **given: Any,
        ) -> Any:
            guided = guided_steps(num_inference_steps, cfg_trunc_ratio)

            def tell(pipeline: Any, step: int, timestep: Any, tensors: dict) -> dict:
                if step + 1 >= guided:
                    pipeline._cfg_truncation = NO_GUIDANCE
                return callback_on_step_end(pipeline, step, timestep, tensors)

            texts = {
                f"{which}prompt_embeds": [given[f"{which}prompt_states"][0]]
                for which in ("", "negative_")
                if f"{which}prompt_states" in given
            }
            kept = {name: value for name, value in given.items() if "prompt_" not in name}
            return super().__call__(
                guidance_scale=guidance_scale - 1,
                num_inference_steps=num_inference_steps,
                callback_on_step_end=tell,
                cfg_truncation=1.0 if guided else NO_GUIDANCE,
                **texts,
                **kept,
            )

    return _pipeline(WithStates, ALONE, *networks, denoises="transformer", **halves)


def lumina_2(*networks: Any, **halves: Any) -> Any:
    """`Lumina2Pipeline`; it takes no pictures. It is given the language model's states."""
    import torch
    from diffusers import Lumina2Pipeline

    class WithStates(Lumina2Pipeline):
        def __call__(self, **given: Any) -> Any:
            states = {name: value for name, value in given.items() if name.endswith("prompt_states")}
            longest = max(value.shape[1] for value in states.values())
            texts = {}
            for name, value in states.items():
                which, missing = name.removesuffix("prompt_states"), longest - value.shape[1]
                texts[f"{which}prompt_embeds"] = torch.nn.functional.pad(value, (0, 0, 0, missing))
                counts = torch.arange(longest)[None] < value.shape[1]
                texts[f"{which}prompt_attention_mask"] = counts.long()
            kept = {name: value for name, value in given.items() if "prompt_" not in name}
            return super().__call__(**texts, **kept)

    return _pipeline(WithStates, ALONE, *networks, denoises="transformer", **halves)


def anima(
    denoiser: Module, decoder: Module, scheduler: Any, *, decoder_config: dict, encoder: Module | None = None
) -> Any:
    """The steps of `AnimaModularPipeline` from the tokens on, as its blocks are put together; it takes no pictures."""
    import torch
    from diffusers import ClassifierFreeGuidance
    from diffusers.modular_pipelines import ModularPipelineBlocks, SequentialPipelineBlocks
    from diffusers.modular_pipelines.anima import before_denoise, denoise, modular_blocks_anima

    vae = _autoencoder_of(decoder, decoder_config, encoder)
    vae.encoder = vae.encoder or torch.nn.Module()  # it counts its convolutions

    class Tell(ModularPipelineBlocks):
        """Calls back after each step, with a latent of one frame."""

        def __init__(self, callback: Any):
            super().__init__()
            self.callback = callback

        def __call__(self, components: Any, state: Any, i: int, t: Any) -> Any:
            self.callback(components, i, t, {"latents": state.latents[:, :, 0]})
            return components, state

    class WithCallback:
        def __init__(self) -> None:
            self.vae = vae

        def __call__(
            self, *, guidance_scale: float, num_inference_steps: int, callback_on_step_end: Any, **given: Any
        ) -> Any:
            loop = denoise.AnimaDenoiseStep()
            loop.sub_blocks["tell"] = Tell(callback_on_step_end)
            steps = {
                "input": before_denoise.AnimaTextInputStep(),
                "prepare_latents": before_denoise.AnimaPrepareLatentsStep(),
                "set_timesteps": before_denoise.AnimaSetTimestepsStep(),
                "denoise": loop,
                "decode": modular_blocks_anima.AnimaDecodeStep(),
            }
            pipeline = SequentialPipelineBlocks.from_blocks_dict(steps).init_pipeline()
            guider = ClassifierFreeGuidance(guidance_scale=guidance_scale, enabled=guidance_scale > 1)
            pipeline.update_components(transformer=denoiser, scheduler=scheduler, vae=vae, guider=guider)
            pipeline.set_progress_bar_config(disable=True)
            given = {name: value for name, value in given.items() if not name.endswith(("_states", "_mask"))}
            return pipeline(num_inference_steps=num_inference_steps, **given)

    return WithCallback()


def _pipeline(
    kind: Any,
    without: dict[str, Any],
    denoiser: Module,
    decoder: Module,
    scheduler: Any,
    *,
    decoder_config: dict,
    encoder: Module | None = None,
    denoises: str = "unet",
) -> Any:
    """A pipeline of the class *kind*, which calls its denoiser *denoises*."""
    vae = _autoencoder_of(decoder, decoder_config, encoder)
    pipeline = kind(vae=vae, scheduler=scheduler, **{denoises: denoiser}, **without)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _autoencoder_of(decoder: Module, config: dict, encoder: Module | None) -> Any:
    """The autoencoder of *config* with *decoder*, and *encoder* if it is there, as its halves."""
    import torch

    from axbake.networks.autoencoder import autoencoder

    with torch.device("meta"):
        vae = autoencoder(config)
    for name in dict(vae.named_children()):
        setattr(vae, name, getattr(decoder, name, None) or getattr(encoder, name, None))
    return vae.eval()


#: What a denoiser draws on (columns `CANVAS`, with a space between) -> the pipeline's function
STABLE_DIFFUSION = {"": stable_diffusion, "image": instruct, "image mask": inpainting}
STABLE_DIFFUSION_XL = {"": stable_diffusion_xl, "image": instruct_xl, "image mask": inpainting_xl}
STABLE_DIFFUSION_3 = {"": stable_diffusion_3}
FLUX_1 = {"": flux_1}
FLUX_2_KLEIN = {"": flux_2_klein}
FLUX_2_DEV = {"": flux_2_dev}
QWEN_IMAGE = {"": qwen_image}
Z_IMAGE = {"": z_image}
ANIMA = {"": anima}
LUMINA_2 = {"": lumina_2}
