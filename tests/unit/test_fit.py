"""Whether a row's files and cells fit each other: told from headers and the table, in the words that a job would have."""

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from safetensors.torch import save_file

from axbake.table import check_config
from tests import loras, tiny
from tests.unit.test_model import OF_CONFIG, model_of

TEXT, VAE = "cond_stage_model.transformer.text_model.", "first_stage_model."
TOKENS = f"{TEXT}embeddings.token_embedding.weight"


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tensors():
    return tiny.single_file_tensors(tiny.small_sd1())


def saved(tensors, name="tiny.safetensors"):
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, name)


def autoencoder(levels):
    """Tensors of a VAE of *levels* levels, by diffusers' names."""
    down, up = ("DownEncoderBlock2D",) * levels, ("UpDecoderBlock2D",) * levels
    widths = {"block_out_channels": (32,) * levels, "latent_channels": 4}
    return AutoencoderKL(down_block_types=down, up_block_types=up, layers_per_block=1, **widths).half().state_dict()


def of_other_words(tensors):
    """The text encoder knows 21128 tokens, as Chinese ones do."""
    saved(tensors | {TOKENS: torch.zeros(21128, tiny.WIDTH).half()})


def of_another_unet(tensors):
    """The UNet takes tokens of another width than the text encoder gives."""
    saved({n: t[..., : t.shape[-1] // 2] if "attn2.to_k" in n or "attn2.to_v" in n else t for n, t in tensors.items()})


def without_vae(tensors):
    saved({name: tensor for name, tensor in tensors.items() if not name.startswith(VAE)})


def with_vae(levels):
    def lay(tensors):
        saved(tensors)
        saved(autoencoder(levels), "vae.safetensors")

    return lay


def with_embedding(name, tensor):
    def lay(tensors):
        saved(tensors)
        if name.endswith(".pt"):
            torch.save({"string_to_param": {"*": tensor}}, name)
        else:
            save_file({"emb_params": tensor}, name)

    return lay


def with_lora(tensors):
    saved(tensors)
    pairs = loras.pairs(tiny.small_sd2(), ("unet",))
    loras.save(loras.kohya(pairs), Path("lora.safetensors"))


def of(build):
    return lambda tensors: tiny.save(build(), Path("tiny.safetensors"))


WIDE = torch.ones(2, 768)
CASES = {
    "a VAE of three levels": (
        with_vae(3),
        {"vae": "vae.safetensors"},
        "tiny: vae.safetensors: an autoencoder that makes one pixel of a latent of 4 × 4 of a picture, wanted 8 × 8.",
    ),
    "no VAE": (without_vae, {}, "TensorMismatch: tiny: tiny.safetensors: no vae_encoder found: wanted a tensor"),
    "another tokenizer's text encoder": (
        of_other_words,
        {},
        "TensorMismatch: tiny: tiny.safetensors: text_encoder: has 21128 tokens, wanted CLIP's 49408",
    ),
    "a UNet for other tokens": (
        of_another_unet,
        {},
        "its text encoder gives 32 channels per token, its UNet takes 16.",
    ),
    "an embedding of another width": (
        with_embedding("word.safetensors", WIDE),
        {"embeddings": "word.safetensors"},
        "tiny: word.safetensors: vectors of 768 numbers, for Stable Diffusion 1.x; the model's text encoder takes 32.",
    ),
    "a pickled one": (
        with_embedding("word.pt", WIDE),
        {"embeddings": "word.pt"},
        "EmbeddingError: tiny: word.pt: vectors of 768 numbers",
    ),
    "an embedding longer than a prompt": (
        with_embedding("word.safetensors", torch.ones(76, tiny.WIDTH)),
        {"embeddings": "word.safetensors"},
        "EmbeddingError: tiny: word.safetensors: 76 vectors; a prompt's chunk holds 75.",
    ),
    "a LoRA of another width": (
        with_lora,
        {"loras": "lora.safetensors:1"},
        "LoraError: tiny: lora.safetensors: made for a context of 64 channels; the checkpoint is a context of 32 channels.",
    ),
    "more layers skipped than there are": (
        saved,
        {"clip_skip": "3"},
        "ClipSkipError: tiny: clip_skip: 3 leaves out 2 layers of 2",
    ),
    "clip skip of a family without": (
        of(tiny.small_sd2),
        {"clip_skip": "2", "prediction": "v_prediction"},
        "ClipSkipError: tiny: clip_skip: 2, wanted 1: the text encoder of Stable Diffusion 2.x always ends before its last layer",
    ),
    "guidance left out of some steps, of a family that never does": (
        saved,
        {"cfg_trunc_ratio": "0.25"},
        "SamplingError: tiny: column cfg_trunc_ratio: 0.25, wanted an empty cell or 1: Stable Diffusion 1.x is guided in all"
        " steps.",
    ),
    "steps that a UNet was not distilled for": (
        of(tiny.sdxs),
        {"steps": "4", "guidance_scale": "5"},
        "SamplingError: tiny: column steps: 4, wanted 1; column guidance_scale: 5, wanted 1.",
    ),
    "a program that gives no guidance": (
        of(tiny.lcm),
        {"program": "euler", "scheduler": "lcm", "steps": "4", "guidance_scale": "1"},
        "TimeEmbeddingError: tiny: unet: takes the guidance scale in its time embedding, which program: euler does not provide.",
    ),
    "more samples than are recorded": (
        saved,
        {"steps": "4", "guidance_scale": "1"},
        "CalibrationError: tiny: calibration/samples: 32, but 1 prompts × 3 steps that run the model × 1 branches give 3, the"
        " empty prompt 3.",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_what_does_not_fit_is_told_from_headers_and_the_table(case, tensors):
    lay, cells, wanted = CASES[case]
    lay(tensors)

    faults = model_of(**cells).fault().splitlines()

    assert len([fault for fault in faults if wanted in fault]) == 1


def test_what_fits_has_no_fault(tensors):
    saved(tensors)
    with_vae(4)(tensors)
    with_embedding("word.safetensors", torch.ones(2, tiny.WIDTH))(tensors)
    cells = {"vae": "vae.safetensors", "embeddings": "word.safetensors", "clip_skip": "2"}

    assert model_of(**cells).fault() == ""


@pytest.mark.parametrize(
    ("cells", "drawn", "empty"),
    [
        ({"scheduler": "euler"}, 8, 0),  # without a negative prompt that branch is the empty prompt's
        ({"scheduler": "euler", "negative_prompt": "bad"}, 8, 4),
        ({"scheduler": "euler", "guidance_scale": "1"}, 4, 4),
        ({"negative_prompt": "bad"}, 6, 3),  # the last step of dpmpp_2m_karras does not run the UNet
        ({"negative_prompt": "bad", "steps": "1"}, 2, 1),  # but the only one does
    ],
)
def test_as_many_samples_as_will_be_recorded_can_be_chosen(tensors, cells, drawn, empty):
    saved(tensors)
    cells = {"steps": "4", "guidance_scale": "5"} | cells

    def fault(samples, selection, first=0):
        calibration = {"samples": samples, "selection": selection, "compare_first": first}
        return model_of(project={"calibration": calibration}, **cells).fault()

    assert check_config({}, source="config.yaml", **OF_CONFIG)["calibration"]["samples"] == 32
    assert fault(drawn + empty, "coverage", drawn) == fault(drawn, "first") == fault(drawn, "stratified") == ""
    for samples, selection in ((drawn + empty + 1, "coverage"), (drawn + 1, "first"), (drawn + 1, "stratified")):
        assert "Give more calibration prompts, or a lower number." in fault(samples, selection)
    assert f"calibration/compare_first: {drawn + 1}, but" in fault(1, "coverage", drawn + 1)


def test_a_unet_that_takes_the_guidance_scale_has_one_branch(tensors):
    of(tiny.lcm)(tensors)
    cells = {"scheduler": "lcm", "steps": "4", "guidance_scale": "5"}

    assert model_of(project={"calibration": {"samples": 8}}, **cells).fault() == ""
    assert (
        "× 4 steps that run the model × 1 branches give 4, the empty prompt 4."
        in model_of(project={"calibration": {"samples": 9}}, **cells).fault()
    )
