"""Checkpoints are taken apart without a tensor lost, mixed up or changed; what is no checkpoint is refused by name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from axbake.checkpoints.containers import UnreadableCheckpoint, open_container
from axbake.checkpoints.finding import find_family
from axbake.checkpoints.refusals import TensorMismatch, UnknownFamily
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.jobs.values import encode
from axbake.networks.component import as_files
from axbake.networks.sampling import Sampling
from axbake.weights.files import read_description, read_sampling
from axbake.weights.networks import load
from tests import tiny
from tests.unit.conftest import SD1, TINY, describe, halves, import_part

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "resources" / "demo" / "emoji-sd.safetensors"
UNET = "model.diffusion_model."
CONV_IN = UNET + "input_blocks.0.0.weight"

every_family = pytest.mark.parametrize("family", tiny.FAMILIES)  # Stable Diffusion XL's are in test_sdxl.py
EVERY_COMPONENT = [(name, component) for name in tiny.FAMILIES for component in FAMILIES[name].names]

INPUTS = {
    "text_encoder": lambda width: (torch.randint(0, 49408, (1, 77)),),
    "unet": lambda width: (torch.randn(1, 4, 8, 12), torch.tensor([321]), torch.randn(1, 77, width)),
    "vae_encoder": lambda width: (torch.rand(1, 3, 64, 96) * 2 - 1,),
    "vae_decoder": lambda width: (torch.randn(1, 4, 8, 12),),
}


@pytest.fixture
def tensors(model):
    """The checkpoint's own tensors, to spoil."""
    return tiny.single_file_tensors(model.networks)


def saved(tensors, directory):
    path = directory / "spoilt.safetensors"
    save_file(tensors, path, metadata={"modelspec.prediction_type": "epsilon"})
    return path


def refusal(error, tensors, directory, component="unet"):
    """Text of the *error* that importing *component* of *tensors* raises."""
    with pytest.raises(error) as caught:
        import_part(saved(tensors, directory), component=component, weights=directory / "w.safetensors")
    assert not (directory / "w.safetensors").exists()
    return str(caught.value)


def test_every_family_has_a_tiny_model():
    assert set(TINY) == set(FAMILIES)


@pytest.mark.parametrize("precision", tiny.PRECISIONS)
@every_family
def test_every_tensor_is_the_original_in_its_own_precision(family, precision, tmp_path):
    dtype = tiny.PRECISIONS[precision]
    networks = tiny.FAMILIES[family](dtype)
    checkpoint = tiny.save(networks, tmp_path / "tiny.safetensors")

    for component in FAMILIES[family].names:
        weights = tmp_path / f"{component}.safetensors"
        import_part(checkpoint, component=component, weights=weights)

        found, wanted = load_file(weights), networks.component(component).state_dict()
        assert set(found) == set(wanted)
        for name, tensor in found.items():
            assert tensor.dtype == dtype, name
            assert tensor.is_contiguous(), name
            assert torch.equal(tensor.float(), wanted[name]), name


@pytest.mark.parametrize(("family", "component"), EVERY_COMPONENT)
def test_the_rebuilt_network_computes_what_the_original_does(family, model_of, component):
    model = model_of(family)
    inputs = INPUTS[component](model.networks.text_encoder.config.hidden_size)
    rebuilt = load(model.weights[component], model.builds[component])
    original = model.networks.component(component)

    with torch.inference_mode():
        found, wanted = rebuilt(*inputs), original(*inputs)

    assert torch.equal(*(out if isinstance(out, torch.Tensor) else out[0] for out in (found, wanted)))


def pipeline_folder(directory, configs):
    """A diffusers folder of *configs* and no weights: what `from_single_file` takes a model's architecture from."""
    pipeline = {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    scheduler = {"_class_name": "DDIMScheduler", "steps_offset": 1, "clip_sample": False}
    files = {"model_index.json": pipeline, "scheduler/scheduler_config.json": scheduler}
    files |= {f"{name}/config.json": config for name, config in configs.items()}
    shutil.copytree(ROOT / "resources" / "clip", directory / "tokenizer")
    for name, content in files.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(json.dumps(content))
    return directory


@every_family
@pytest.mark.parametrize("which", ["demo", "tiny"])
def test_diffusers_own_loader_finds_the_same_tensors(family, which, tmp_path):
    # Of full depth: of LDM's names, diffusers knows no others.
    checkpoint = DEMO if which == "demo" else tiny.save(tiny.VARIANTS[family](), tmp_path / "tiny.safetensors")
    weights = {component: tmp_path / f"{component}.safetensors" for component in FAMILIES[family].names}
    for component, path in weights.items():
        import_part(checkpoint, component=component, weights=path)
    configs = {component: read_description(path).config for component, path in weights.items()}
    folder = pipeline_folder(tmp_path / "folder", {**configs, "vae": configs["vae_decoder"]})

    pipeline = StableDiffusionPipeline.from_single_file(
        str(checkpoint), config=str(folder), local_files_only=True, safety_checker=None, torch_dtype=torch.float16
    )
    networks = tiny.Networks(pipeline.text_encoder, pipeline.unet, pipeline.vae, torch.float16)

    for component, path in weights.items():
        found, wanted = load_file(path), networks.component(component).state_dict()
        wanted = {name.removeprefix("text_model."): tensor for name, tensor in wanted.items()}
        assert set(found) == set(wanted)
        assert [name for name in found if not torch.equal(found[name], wanted[name])] == []


@every_family
def test_the_architecture_is_read_from_the_shapes(family, model_of):
    model = model_of(family)
    for component, weights in model.weights.items():
        found = read_description(weights)
        own = model.networks.component(component)
        config = getattr(own, "config", model.networks.vae.config)
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        told = {name: value for name, value in found.config.items() if name in config and not name.startswith("_")}

        assert found.component == component
        assert found.family == ("" if component in halves(model.family) else family)
        assert len(told) > 8
        for name in set(told) - {"architectures", "sample_size", "model_type"}:
            value = tuple(told[name]) if isinstance(told[name], list) else told[name]
            wanted = tuple(config[name]) if isinstance(config[name], list) else config[name]
            assert value == wanted, name


@every_family
def test_the_weights_say_how_the_unet_is_run(family, model_of):
    model = model_of(family)
    assert read_sampling(model.weights["unet"]) == Sampling(model.networks.prediction_type)


@every_family
def test_the_description_says_what_the_file_is_and_what_is_left_over(family, model_of, tmp_path):
    model = model_of(family)
    describe(model.checkpoint, tmp_path / "checkpoint.json", sha256="0123456789" + 54 * "a")

    said = json.loads((tmp_path / "checkpoint.json").read_text())
    unused = {name: entry["why"] for entry in said["unused_tensors"] for name in entry["first"]}
    assert said["family"] == family
    assert said["autov2"] == "0123456789"
    assert said["bytes"] == model.checkpoint.stat().st_size
    assert set(tiny.leftovers()) <= {name for entry in said["unused_tensors"] for name in entry["first"]} | set(unused)
    assert "unknown to this family" not in unused.values()
    assert "moving average" in unused["model_ema.decay"]
    assert "noise schedule" in unused["alphas_cumprod"]
    assert "noise schedule" in unused["sqrt_one_minus_alphas_cumprod"]
    assert "constant" in unused["cond_stage_model.transformer.text_model.embeddings.position_ids"]
    assert set(said["components"]) == set(model.family.names)
    for component in model.family.names:
        network = model.networks.component(component)
        assert said["components"][component]["parameters"] == sum(p.numel() for p in network.parameters())
        assert said["components"][component]["precision"] == ["F16"]


def test_leftovers_do_not_change_the_weights(model, tmp_path):
    bare = tiny.save(model.networks, tmp_path / "bare.safetensors")

    for component, weights in model.weights.items():
        import_part(bare, component=component, weights=tmp_path / "weights.safetensors")

        assert (tmp_path / "weights.safetensors").read_bytes() == weights.read_bytes()


def test_another_process_writes_the_same_bytes(model, tmp_path):
    command = (
        "import json, sys; from pathlib import Path; from axbake.jobs.values import decode\n"
        "from axbake.weights.importing import import_component\n"
        "import_component(Path(sys.argv[1]), weights=Path(sys.argv[2]), **decode(json.loads(sys.argv[3])))"
    )
    other = tmp_path / "weights.safetensors"
    component = as_files(SD1.component("vae_encoder"))
    settings, _ = encode({"component": component, "family": "", "latents": SD1.latents})  # as a job has them
    subprocess.run([sys.executable, "-c", command, model.checkpoint, other, json.dumps(settings)], cwd=ROOT, check=True)

    assert other.read_bytes() == model.weights["vae_encoder"].read_bytes()


@pytest.mark.parametrize(
    ("content", "size"),
    [
        (lambda whole: whole[: len(whole) // 2], "half of it"),
        (lambda whole: whole[:100], "a part of its header"),
        (lambda whole: b"<!doctype html><title>Sign in</title>" * 30, "a page"),
        (lambda whole: b"", "nothing"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_not_whole_is_named_with_its_size(model, content, size, tmp_path):
    path = tmp_path / "spoilt.safetensors"
    path.write_bytes(content(model.checkpoint.read_bytes()))

    with pytest.raises(UnreadableCheckpoint) as caught:
        open_container(path)

    assert str(caught.value).startswith(f"{path}: {path.stat().st_size} bytes that are not a complete safetensors file")
    assert "Download it again and compare its SHA-256" in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UnreadableCheckpoint, match=r"nowhere\.safetensors: no such file"):
        open_container(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"], "a LoRA"),
        (["unet.up_blocks.1.attn1.to_q.lora_A.weight"], "a LoRA"),
        (["control_model.input_blocks.0.0.weight"], "a ControlNet"),
        (["controlnet_cond_embedding.conv_in.weight"], "a ControlNet"),
        (["emb_params"], "a textual-inversion embedding"),
        (
            ["conditioner.embedders.1.model.ln_final.weight", CONV_IN, UNET + "middle_block.1.norm.weight"],
            "a part of a Stable Diffusion XL checkpoint",
        ),
        (["model.diffusion_model.double_layers.0.attn.w1q.weight"], "an AuraFlow checkpoint"),
        (["double_blocks.0.img_attn.qkv.weight"], "a FLUX checkpoint"),
    ],
)
def test_a_file_of_another_kind_is_called_by_its_name(names, kind, tmp_path):
    said = refusal(UnknownFamily, {name: torch.zeros(4, 4) for name in names}, tmp_path)

    assert f"this is {kind}" in said
    assert "Known families: " in said and "sd1 (Stable Diffusion 1.x), sd2" in said


def test_a_file_of_no_known_kind_says_what_is_lacking(tmp_path):
    said = refusal(UnknownFamily, {"weight": torch.zeros(4), "bias": torch.zeros(4)}, tmp_path)

    assert "2 tensors that fit no family" in said
    assert "input_blocks.0.0.weight or time_embedding.linear_1.weight" in said


def test_a_missing_tensor_is_named(model, tensors, tmp_path):
    del tensors[UNET + "middle_block.0.in_layers.0.bias"]

    said = refusal(TensorMismatch, tensors, tmp_path)

    width = model.networks.unet.config.block_out_channels[-1]
    assert f"unet: mid_block.resnets.0.norm1.bias: missing, wanted ({width},)" in said


def test_a_tensor_of_a_wrong_shape_is_named_with_both_shapes(tensors, tmp_path):
    tensors["first_stage_model.decoder.conv_out.bias"] = torch.zeros(5)

    said = refusal(TensorMismatch, tensors, tmp_path, "vae_decoder")

    assert "vae_decoder: decoder.conv_out.bias: found (5,), wanted (3,)" in said


def test_an_upscaler_is_refused_since_its_seven_channels_fit_no_interface(tensors, tmp_path):
    tensors[CONV_IN] = torch.zeros(tiny.WIDTH, 7, 3, 3)

    said = refusal(AxbakeError, tensors, tmp_path)

    assert "in_channels: 7, wanted 4: this is an upscaler" in said


@pytest.mark.parametrize(
    ("name", "component"),
    [
        ("model.diffusion_model.middle_block.1.adapter.weight", "unet"),
        (None, "text_encoder"),
        ("first_stage_model.decoder.adapter.weight", "vae_decoder"),
        ("first_stage_model.encoder.adapter.weight", "vae_encoder"),
    ],
)
def test_a_tensor_that_the_network_has_no_use_for_is_named(model, tensors, name, component, tmp_path):
    text_layer = {"sd1": "cond_stage_model.transformer.text_model.encoder.layers.0"}
    text_layer |= {"sd2": "cond_stage_model.model.transformer.resblocks.0"}
    name = name or f"{text_layer[model.family.name]}.adapter.weight"
    said = refusal(TensorMismatch, tensors | {name: torch.zeros(3)}, tmp_path, component)

    assert "adapter.weight: (3,), which the network does not use" in said


@pytest.mark.parametrize("component", ["text_encoder", "unet", "vae_decoder"])
def test_a_network_that_is_there_twice_counts_once_if_both_are_the_same(model, tensors, component, tmp_path):
    """Merges carry a text encoder under the names of two programs."""
    starts = {"text_encoder": "cond_stage_model.", "unet": UNET, "vae_decoder": "first_stage_model."}
    twins = {f"twin.{name}": tensor.clone() for name, tensor in tensors.items() if name.startswith(starts[component])}
    paths = [tmp_path / "once.safetensors", tmp_path / "twice.safetensors"]
    for path, content in zip(paths, (tensors, tensors | twins), strict=True):
        (tmp_path / path.stem).mkdir()
        import_part(saved(content, tmp_path / path.stem), component=component, weights=path)
    once, twice = map(load_file, paths)

    assert once.keys() == twice.keys() and all(torch.equal(once[name], twice[name]) for name in once)

    inside = ".decoder." if component == "vae_decoder" else "."
    other = next(name for name in twins if inside in name and name.endswith(".bias"))
    said = refusal(TensorMismatch, tensors | twins | {other: twins[other] + 1}, tmp_path, component)
    assert f"contains two networks that could be its {component}" in said
    assert (
        f"{other.removeprefix('twin.')} is not {other}" in said
        or f"{other} is not {other.removeprefix('twin.')}" in said
    )


def test_several_faults_are_told_at_once_and_eight_at_most(tensors, tmp_path):
    gone = [name for name in tensors if name.startswith(UNET + "output_blocks.7.1.") and name.endswith("bias")]
    kept = {name: tensor for name, tensor in tensors.items() if name not in gone}

    said = refusal(TensorMismatch, kept, tmp_path)

    assert len(gone) > 8
    assert said.count("missing") == 8
    assert f"and {len(gone) - 8} more" in said


def test_a_component_that_is_hardly_there_is_an_error_and_no_traceback(tensors, tmp_path):
    first, half = "first_stage_model.decoder.conv_in.weight", "first_stage_model.decoder."
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(half) or name == first}

    said = refusal(TensorMismatch, kept, tmp_path, "vae_decoder")

    assert "vae_decoder: not a plausible width or depth" in said


def test_a_unet_that_is_hardly_there_is_of_no_family(tensors, tmp_path):
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(UNET) or name == CONV_IN}

    assert "a denoiser of 1 tensors that fits no family" in refusal(UnknownFamily, kept, tmp_path)


def test_the_family_is_found_by_names_alone(model):
    assert find_family(open_container(model.checkpoint), FAMILIES) == model.family


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        ("unet", {"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift: scale_shift, wanted default"),
        ("unet", {"class_embed_type": "timestep"}, "class_embed_type: timestep, wanted None"),
        ("vae", {"scaling_factor": "large"}, "scaling_factor: large, wanted a number above 0"),
        ("vae", {"shift_factor": 0.1}, "shift_factor: 0.1, wanted None"),
    ],
)
def test_a_folders_config_of_another_network_is_refused(place, change, said, tmp_path):
    folder = tiny.save_folder(tiny.bk_sdm_tiny(), tmp_path / "model")
    path = folder / place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    component = {"unet": "unet", "vae": "vae_decoder"}[place]

    with pytest.raises(UnknownFamily) as caught:
        import_part(folder, component=component, weights=tmp_path / "weights.safetensors")

    assert f"{place}/config.json: {said}" in str(caught.value)


def test_what_a_folders_configs_say_goes_before_the_familys(tmp_path):
    folder = tiny.save_folder(tiny.bk_sdm_tiny(), tmp_path / "model")
    for place, change in (("unet", {"attention_head_dim": 4}), ("vae", {"scaling_factor": 0.5})):
        path = folder / place / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))

    for component in ("unet", "vae_decoder"):
        import_part(folder, component=component, weights=tmp_path / f"{component}.safetensors")

    assert read_description(tmp_path / "unet.safetensors").config["attention_head_dim"] == 4
    assert read_description(tmp_path / "vae_decoder.safetensors").config["scaling_factor"] == 0.5


@pytest.mark.parametrize("variant", ["sd1", "sd2", "bk_sdm_base", "bk_sdm_tiny"])
def test_a_file_of_the_moving_average_alone_gives_the_unet_it_is_of(variant, tmp_path):
    networks = tiny.VARIANTS[variant]()
    path = tmp_path / "average.safetensors"
    save_file(tiny.averaged(tiny.single_file_tensors(networks)), path, metadata=tiny.metadata(networks))

    import_part(path, component="unet", weights=tmp_path / "unet.safetensors")
    describe(path, tmp_path / "checkpoint.json")

    found, wanted = load_file(tmp_path / "unet.safetensors"), networks.unet.state_dict()
    assert set(found) == set(wanted)
    assert [name for name, tensor in found.items() if not torch.equal(tensor.float(), wanted[name])] == []
    said = json.loads((tmp_path / "checkpoint.json").read_text())
    assert said["unet_is_average"] and "unknown to this family" not in [
        entry["why"] for entry in said["unused_tensors"]
    ]


@pytest.mark.parametrize("layout", ["ldm", "diffusers"])
@pytest.mark.parametrize("said", tiny.FAMILIES)
def test_a_file_of_another_family_than_the_table_says_is_refused(layout, said, tmp_path):
    networks = tiny.FAMILIES[{"sd1": "sd2", "sd2": "sd1"}[said]]()
    path = tiny.save(networks, tmp_path / "fetched.safetensors", layout=layout)

    with pytest.raises(UnknownFamily) as caught:
        describe(path, tmp_path / "checkpoint.json", family=FAMILIES[said])

    assert f"its unet is not one of {FAMILIES[said].title}, which the column family says" in str(caught.value)
    assert not (tmp_path / "checkpoint.json").exists()


def test_a_text_encoder_and_a_unet_of_different_models_are_refused(tmp_path):
    """As merging tools leave them: each is whole, and the shapes of each are those of its family."""
    tensors = tiny.single_file_tensors(tiny.sd1())
    wide = tiny.single_file_tensors(tiny.sd2(), "diffusers")
    clip = "text_encoder.text_model."
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("cond_stage_model.")}
    tensors |= {name: tensor for name, tensor in wide.items() if name.startswith(clip)}

    with pytest.raises(TensorMismatch, match="its text encoder gives 64 channels per token, its UNet takes 32"):
        describe(saved(tensors, tmp_path), tmp_path / "checkpoint.json")


@pytest.mark.parametrize(
    ("place", "change", "said"),
    [
        ("text_encoder", {"hidden_act": 5}, "hidden_act: 5, wanted one of quick_gelu"),
        ("text_encoder", {"hidden_act": ["gelu"]}, "hidden_act: ['gelu'], wanted one of"),
        ("text_encoder", {"layer_norm_eps": "small"}, "layer_norm_eps: small, wanted a number between 0 and 1"),
        ("text_encoder", {"num_attention_heads": 2.5}, "num_attention_heads: 2.5, wanted a number above 0"),
        ("text_encoder", {"num_attention_heads": 7}, "channels cannot be split into 7 attention heads"),
        ("text_encoder", {"num_attention_heads": [1]}, "channels cannot be split into [1] attention heads"),
        ("unet", {"attention_head_dim": {"a": 1}}, "attention_head_dim: {'a': 1}, wanted a number above 0"),
        ("unet", {"act_fn": "\x1b[2J"}, "act_fn: \\x1b[2J, wanted one of swish"),
        ("unet", {"flip_sin_to_cos": "no"}, "flip_sin_to_cos: no, wanted true or false"),
        ("unet", {"norm_num_groups": 0}, "norm_num_groups: 0, wanted a number above 0"),
        ("vae", {"scaling_factor": True}, "scaling_factor: True, wanted a number above 0"),
    ],
)
def test_a_folders_config_of_odd_types_is_refused(place, change, said, tmp_path):
    folder = tiny.save_folder(tiny.bk_sdm_tiny(), tmp_path / "model")
    path = folder / place / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises((UnknownFamily, TensorMismatch)) as caught:
        import_part(folder, component={"vae": "vae_decoder"}.get(place, place), weights=tmp_path / "w.safetensors")

    assert said in str(caught.value) and str(folder) in str(caught.value)


def test_a_prediction_type_of_an_odd_type_says_nothing(tmp_path):
    folder = tiny.save_folder(tiny.bk_sdm_tiny(), tmp_path / "model")
    (folder / "scheduler" / "scheduler_config.json").write_text('{"prediction_type": ["epsilon"]}')

    import_part(folder, component="unet", weights=tmp_path / "w.safetensors")

    assert read_sampling(tmp_path / "w.safetensors").prediction_type == "epsilon"


@pytest.mark.parametrize("name", ["a" * 501, "a\x1b[2Jb", "a\u2028b", "a\nb"])
def test_a_tensors_name_that_no_message_can_hold_is_refused(name, tmp_path):
    path = saved({name: torch.ones(1)}, tmp_path)

    with pytest.raises(UnreadableCheckpoint, match="a tensor's name ") as caught:
        open_container(path)

    assert len(str(caught.value)) < 500 and str(caught.value).isprintable()


@pytest.mark.parametrize(
    "said",
    ['{"left_out": 3, "leftovers": [[1]], "bytes": "x", "form": []}', "[]", "{", '{"configs": {"unet": [1]}}', "null"],
)
def test_what_anybody_can_write_into_the_metadata_does_no_harm(said, model, tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, metadata=tiny.metadata(model.networks) | {"axbake.source": said})

    describe(path, tmp_path / "checkpoint.json")

    told = json.loads((tmp_path / "checkpoint.json").read_text())
    assert (told["container"], told["bytes"], told["left_out_of_pickle"]) == ("safetensors", path.stat().st_size, [])


def test_the_shapes_of_a_checkpoint_are_made_once(model):
    """Who asks for them tensor by tensor takes no time in the square of their number."""
    container = open_container(model.checkpoint)

    assert container.shapes is container.shapes
