"""LoRAs fused as diffusers, PEFT and LyCORIS fuse them; and what is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.training_utils import _collate_lora_metadata
from lycoris.modules import FullModule, IA3Module, LoConModule, LohaModule, LokrModule, NormModule
from peft import LoraConfig, get_peft_model_state_dict

from axbake.loras.files import LoraError, lora_facts, peft_config, read_lora
from axbake.loras.fusing import Fusion
from tests import loras, tiny
from tests.unit.conftest import SD1, pipeline_of

COMPONENTS = ("unet", "text_encoder")


@pytest.fixture(scope="module")
def networks() -> tiny.Networks:
    return tiny.sd1(torch.float32)


def plain_tensors(networks: tiny.Networks, component: str) -> dict[str, torch.Tensor]:
    state = networks.component(component).state_dict()
    return {name.removeprefix("text_model."): tensor for name, tensor in state.items()}


def fused(networks: tiny.Networks, component: str, *given: tuple[Path, float], dtype=torch.float32) -> dict:
    """The component's tensors with LoRAs in them."""
    tensors = {name: tensor.to(dtype) for name, tensor in plain_tensors(networks, component).items()}
    width = networks.text_encoder.config.hidden_size
    fusion = Fusion(SD1.component(component), {name: tuple(t.shape) for name, t in tensors.items()}, given, width=width)
    return {name: fusion.apply(name, tensor) for name, tensor in tensors.items()}


def fused_by_diffusers(networks: tiny.Networks, path: Path, strength: float) -> dict[str, dict[str, torch.Tensor]]:
    pipeline = pipeline_of(copy.deepcopy(networks), "ddim")
    pipeline.load_lora_weights(path)
    pipeline.fuse_lora(lora_scale=strength)
    pipeline.unload_lora_weights()
    return {
        component: {
            name.replace("base_layer.", "").removeprefix("text_model."): tensor
            for name, tensor in getattr(pipeline, component).state_dict().items()
            if "lora_" not in name
        }
        for component in COMPONENTS
    }


def assert_near(found: dict, wanted: dict, plain: dict, *, changed: int) -> None:
    """The same tensors; *changed* of them are not those of the plain network."""
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert sum(not torch.equal(found[name], plain[name]) for name in found) == changed


@pytest.mark.parametrize("layout", loras.LAYOUTS)
def test_a_lora_of_every_layout_is_fused_as_diffusers_does(layout, networks, tmp_path):
    components = ("unet",) if layout in loras.UNET_ALONE else COMPONENTS
    pairs = loras.pairs(networks, components, attention="processors" in layout)
    path = loras.save(loras.LAYOUTS[layout](pairs), tmp_path / "lora.safetensors")
    same = loras.LAYOUTS[loras.SAME_FOR_DIFFUSERS.get(layout, layout)](pairs)
    wanted = fused_by_diffusers(networks, loras.save(same, tmp_path / "same.safetensors"), 0.7)

    assert set(read_lora(path).modules) == set(components)
    for component in components:
        changed = sum(name == component for name, _ in pairs)
        found = fused(networks, component, (path, 0.7))
        assert_near(found, wanted[component], plain_tensors(networks, component), changed=changed)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"lora_alpha": 2}, id="alpha in the metadata"),
        pytest.param({"lora_alpha": 2, "alpha_pattern": {"attn2.to_k": 3}}, id="another alpha for one module"),
        pytest.param({"lora_alpha": 2, "use_rslora": True}, id="rank-stabilised"),
        pytest.param({"lora_alpha": 4, "use_dora": True}, id="DoRA"),
    ],
)
def test_what_diffusers_and_peft_write_is_fused_as_they_do(options, networks, tmp_path):
    unet = copy.deepcopy(networks.unet)
    unet.add_adapter(LoraConfig(r=4, target_modules=["attn1.to_q", "attn2.to_k", "proj_in", "conv1"], **options))
    torch.manual_seed(3)
    trained = [parameter for name, parameter in unet.named_parameters() if "lora_" in name]
    for parameter in trained:
        parameter.data += 0.1 * torch.randn_like(parameter)
    StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=get_peft_model_state_dict(unet), **_collate_lora_metadata({"unet": unet})
    )
    path = tmp_path / "pytorch_lora_weights.safetensors"
    wanted = fused_by_diffusers(networks, path, 1.0)["unet"]

    assert list(read_lora(path).modules) == ["unet"]
    changed = sum(name.endswith((".to_q.weight", ".to_k.weight", "proj_in.weight", "conv1.weight")) for name in wanted)
    changed -= sum(".attn1.to_k." in name or ".attn2.to_q." in name for name in wanted if name.endswith(".weight"))
    assert_near(fused(networks, "unet", (path, 1.0)), wanted, plain_tensors(networks, "unet"), changed=changed)


MATRIX, KERNEL = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", "mid_block.resnets.0.conv1"
NORM = "mid_block.resnets.0.norm1"


@pytest.mark.parametrize(
    ("algorithm", "module", "options"),
    [
        (LoConModule, MATRIX, {}),
        (LoConModule, KERNEL, {}),
        (LoConModule, KERNEL, {"use_tucker": True}),
        (LoConModule, MATRIX, {"weight_decompose": True}),
        (LoConModule, KERNEL, {"weight_decompose": True}),
        (LoConModule, KERNEL, {"weight_decompose": True, "wd_on_out": False}),
        (LohaModule, MATRIX, {}),
        (LohaModule, KERNEL, {}),
        (LohaModule, KERNEL, {"use_tucker": True}),
        (LohaModule, MATRIX, {"weight_decompose": True}),
        (LokrModule, MATRIX, {}),
        (LokrModule, MATRIX, {"factor": 4, "decompose_both": True, "lora_dim": 1}),
        (LokrModule, MATRIX, {"full_matrix": True}),
        (LokrModule, KERNEL, {}),
        (LokrModule, KERNEL, {"use_tucker": True}),
        (LokrModule, MATRIX, {"weight_decompose": True}),
        (IA3Module, MATRIX, {}),
        (IA3Module, KERNEL, {"train_on_input": True}),
        (FullModule, KERNEL, {}),
        (NormModule, NORM, {}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else getattr(value, "__name__", value),
)
def test_what_lycoris_trains_is_fused_as_it_runs(algorithm, module, options, networks, tmp_path):
    """Compared with the module's output and not with its `merge_to`, which multiplies alpha / rank twice in LoHa and LoKr."""
    original = copy.deepcopy(networks.unet.get_submodule(module))
    torch.manual_seed(5)
    trained = algorithm("lora", copy.deepcopy(original), **{"lora_dim": 2, "alpha": 1} | options).eval()
    if algorithm is FullModule:
        trained.apply_to()  # from here on it holds the weights themselves
    for parameter in trained.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    name = f"lora_unet_{module.replace('.', '_')}"
    path = loras.save(
        {f"{name}.{key}": value for key, value in trained.state_dict().items()}, tmp_path / "l.safetensors"
    )
    strength = 1.0 if options.get("weight_decompose") else 0.6
    trained.multiplier = strength
    shape = {MATRIX: (3, 5), KERNEL: (1,), NORM: (2,)}[module]
    ends = (
        (original.weight.shape[1],)
        if module == MATRIX
        else (original.weight.shape[-3 if module == KERNEL else 0], 6, 6)
    )
    inputs = torch.randn(*shape, *ends)
    found = fused(networks, "unet", (path, strength))
    plain = plain_tensors(networks, "unet")

    fused_module = copy.deepcopy(original)
    fused_module.load_state_dict({kind: found[f"{module}.{kind}"] for kind in fused_module.state_dict()})
    torch.testing.assert_close(fused_module(inputs), trained(inputs), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(fused_module(inputs), original(inputs), rtol=1e-2)
    assert {key for key in found if not torch.equal(found[key], plain[key])} <= {f"{module}.weight", f"{module}.bias"}


def test_loras_are_fused_one_after_the_other(networks, tmp_path):
    first = loras.save(loras.kohya(loras.pairs(networks, ("unet",))), tmp_path / "first.safetensors")
    second = loras.save(loras.peft(loras.pairs(networks, ("unet",), attention=True)), tmp_path / "second.safetensors")
    plain = plain_tensors(networks, "unet")

    both = fused(networks, "unet", (first, 0.5), (second, -0.25))
    alone = [fused(networks, "unet", given) for given in ((first, 0.5), (second, -0.25))]
    for name, tensor in plain.items():
        wanted = sum((changed[name] - tensor for changed in alone), tensor)
        torch.testing.assert_close(both[name], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("stored", "made"), [(torch.float16, torch.float16), (torch.bfloat16, torch.float32)])
def test_a_change_is_added_in_float32(stored, made, networks, tmp_path):
    pairs = loras.pairs(networks, ("unet",))
    path = loras.save(loras.kohya(pairs), tmp_path / "lora.safetensors")
    exact, found = (fused(networks, "unet", (path, 0.1), dtype=dtype) for dtype in (torch.float32, stored))
    plain = plain_tensors(networks, "unet")

    assert found["conv_in.weight"].dtype == stored
    for _, module in pairs:
        name = f"{module}.weight"
        wanted = plain[name].to(stored).float() + (exact[name] - plain[name])
        assert found[name].dtype == made
        torch.testing.assert_close(found[name].float(), wanted, rtol=torch.finfo(made).eps, atol=1e-6)


def refused(networks: tiny.Networks, tensors: dict, tmp_path: Path, *, component: str = "unet") -> str:
    path = loras.save(tensors, tmp_path / "lora.safetensors", {"ss_base_model_version": "sd_v1"})
    with pytest.raises(LoraError) as raised:
        read_lora(path)
        fused(networks, component, (path, 1.0))
    return str(raised.value)


UNET_NAME = f"lora_unet_{MATRIX.replace('.', '_')}"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"lora_unet_double_blocks_0_img_attn_proj.lora_down.weight": torch.ones(4, 8)}, "for FLUX"),
        (
            {"some.other.tensor": torch.ones(2)},
            "1 of 31 tensors are of a kind that axbake cannot fuse: some.other.tensor",
        ),
        ({f"{UNET_NAME}.oft_blocks": torch.ones(2, 4, 4)}, "oft_blocks"),
        ({f"{UNET_NAME}.lora_down.weight": torch.ones(4, 64)}, "together they are neither LoRA, LoHa"),
        ({f"{UNET_NAME}.diff": torch.ones(64, 63)}, "no change of mid_block"),
        (
            {f"{UNET_NAME}.lora_down.weight": torch.ones(0, 64), f"{UNET_NAME}.lora_up.weight": torch.ones(64, 0)},
            "zero",
        ),
        (
            {f"{UNET_NAME}.{role}": torch.ones(4, 4) for role in ("lokr_w1", "lokr_w2", "lokr_t2")},
            "together they are neither LoRA, LoHa",
        ),
        ({f"{UNET_NAME}.diff_b": torch.ones(64)}, f"the network has no {MATRIX}.bias"),
        (
            {f"{UNET_NAME}.lokr_w1": torch.ones(8, 8), f"{UNET_NAME}.lokr_w2": torch.ones(8, 4)},
            "no change of mid_block",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else " ".join(value)[-30:],
)
def test_what_cannot_be_used_is_named(change, said, networks, tmp_path):
    tensors = loras.kohya(loras.pairs(networks, ("unet",)))

    assert said in refused(networks, tensors | change, tmp_path)


def test_a_lora_of_another_family_is_named(networks, tmp_path):
    other = loras.pairs(tiny.sd2(torch.float32), attention=True)

    for component in COMPONENTS:
        said = refused(networks, loras.kohya(other), tmp_path, component=component)
        assert "made for a context of 64 channels (it says ss_base_model_version: sd_v1); the checkpoint is" in said


def test_what_is_no_lora_is_named(networks, tmp_path):
    assert "not a LoRA: conv.weight" in refused(networks, {"conv.weight": torch.ones(2)}, tmp_path)
    path = tmp_path / "lora.safetensors"
    path.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(LoraError, match="a pickle or a folder"):
        read_lora(path)
    path.write_bytes(bytes(4) + b"\xff" * 60)
    with pytest.raises(LoraError, match="not a complete safetensors file"):
        read_lora(path)


def test_a_lora_that_makes_weights_too_large_is_refused(networks, tmp_path):
    path = loras.save({f"{UNET_NAME}.diff": torch.full((64, 64), 1e5)}, tmp_path / "lora.safetensors")

    with pytest.raises(LoraError, match=r"makes mid_block.* too large"):
        fused(networks, "unet", (path, 1.0), dtype=torch.float16)


@pytest.mark.parametrize(
    ("name", "metadata", "lcm"),
    [
        ("lcm-lora-sdv1-5/pytorch_lora_weights", {}, True),
        ("LCM_LoRA_Weights_SD15", {}, True),
        ("style", {"ss_output_name": "style-LCM"}, True),
        ("calcmap", {"ss_output_name": "film"}, False),
    ],
)
def test_what_the_workflow_has_to_know_of_a_lora_is_remembered(name, metadata, lcm, networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = loras.pairs(networks, ("text_encoder",))
    path = loras.save(loras.kohya(pairs), tmp_path / f"{name}.safetensors", metadata or None)
    facts = lora_facts(path)

    assert (list(facts.components), facts.lcm) == (["text_encoder"], lcm)
    assert facts.widths == {"text_encoder": tiny.WIDTH}
    assert len(facts.components["text_encoder"]) == len(pairs)
    (note,) = (tmp_path / ".axbake" / "digests").iterdir()
    made = note.stat().st_mtime_ns
    assert lora_facts(path) == facts
    assert note.stat().st_mtime_ns == made
    loras.save(loras.kohya(loras.pairs(networks)), path)
    assert list(lora_facts(path).components) == ["text_encoder", "unet"]


WRAPPED = {
    "an adapter's name": lambda key: key.replace(".lora_A.", ".lora_A.default.").replace(
        ".lora_B.", ".lora_B.default."
    ),
    "an adapter's number": lambda key: key.replace(".lora_A.", ".lora_A.default_0.").replace(
        ".lora_B.", ".lora_B.default_0."
    ),
    "PEFT's model": lambda key: f"base_model.model.{key}",
    "PEFT's model inside": lambda key: key.replace("unet.", "unet.base_model.model."),
    "PEFT's model of the network alone": lambda key: (
        f"base_model.model.{key.removeprefix('unet.').removeprefix('text_encoder.')}"
    ),
    "torch.compile": lambda key: key.replace("unet.", "unet._orig_mod."),
    "parallel training": lambda key: f"module.{key}",
    "all of them": lambda key: "module.base_model.model._orig_mod." + key.replace(".weight", ".my-adapter.weight"),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
def test_what_wrappers_put_into_names_is_left_out(wrapper, networks, tmp_path):
    plain = loras.peft(loras.pairs(networks))
    path = loras.save(plain, tmp_path / "plain.safetensors")
    wrapped = loras.save({WRAPPED[wrapper](key): t for key, t in plain.items()}, tmp_path / "wrapped.safetensors")

    for component in COMPONENTS:
        found, wanted = (fused(networks, component, (one, 0.7)) for one in (wrapped, path))
        assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
        assert any(not torch.equal(tensor, plain_tensors(networks, component)[name]) for name, tensor in wanted.items())


def test_modules_that_the_network_lacks_are_left_out_unless_it_lacks_all(networks, tmp_path):
    plain = loras.kohya(loras.pairs(networks, ("unet",)))
    lacking = {"lora_unet_mid_block_nothing.diff": torch.ones(2)}
    path, more = loras.save(plain, tmp_path / "a.safetensors"), loras.save(plain | lacking, tmp_path / "b.safetensors")

    found, wanted = (fused(networks, "unet", (one, 0.7)) for one in (more, path))

    assert [name for name in wanted if not torch.equal(found[name], wanted[name])] == []
    assert "lora_unet_mid_block_nothing.diff: the network has no such module" in refused(networks, lacking, tmp_path)


def test_two_adapters_in_one_file_are_refused(networks, tmp_path):
    plain = loras.peft(loras.pairs(networks, ("unet",)))
    both = {key.replace(".weight", f".{name}.weight"): t for key, t in plain.items() for name in ("a", "b")}

    assert "are both the lora_down of" in refused(networks, both, tmp_path)


def test_embeddings_that_a_lora_brings_along_do_not_hinder_it(networks, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tensors = loras.kohya(loras.pairs(networks, ("unet",)))
    bundle = {
        "bundle_emb.ohwx.string_to_param.*": torch.ones(2, tiny.WIDTH),
        "bundle_emb.b.emb_params": torch.ones(1, 8),
    }
    path = loras.save(tensors | bundle, tmp_path / "lora.safetensors")
    wanted = fused(networks, "unet", (loras.save(tensors, tmp_path / "plain.safetensors"), 0.7))

    found = fused(networks, "unet", (path, 0.7))

    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())
    assert lora_facts(path).embeddings == ["b", "ohwx"]


@pytest.mark.parametrize(
    "told",
    [
        {"unet.alpha_pattern": ["x"]},
        {"unet.alpha_pattern": {"attn1.to_q": "much"}},
        {"unet.alpha_pattern": {"attn1.to_q": None}},
        {"unet.alpha_pattern": 3},
        {"unet.lora_alpha": "4"},
        {"unet.lora_alpha": True},
        {"unet.lora_alpha": 1e300},
        {"unet.lora_alpha": [4]},
        {"unet.use_rslora": "yes"},
        {"unet.use_rslora": 1},
        "[" * 10**5,
        "{",
    ],
    ids=str,
)
def test_metadata_of_odd_types_is_named(told, networks, tmp_path):
    text = told if isinstance(told, str) else json.dumps(told)
    tensors = {
        name: t for name, t in loras.kohya(loras.pairs(networks, ("unet",))).items() if not name.endswith("alpha")
    }
    path = loras.save(tensors, tmp_path / "lora.safetensors", {"lora_adapter_metadata": text})

    with pytest.raises(LoraError, match="metadata lora_adapter_metadata: ") as raised:
        fused(networks, "unet", (path, 1.0))
    assert str(path) in str(raised.value) and len(str(raised.value)) < 600


def test_an_alpha_is_that_of_the_first_pattern_which_ends_a_modules_name(networks, tmp_path):
    tensors = {
        name: t for name, t in loras.kohya(loras.pairs(networks, ("unet",))).items() if not name.endswith("alpha")
    }
    patterns = {"to_q": 2, "attn1.to_q": 8, "o_q": 9, "conv1": 1}
    told = {"lora_adapter_metadata": json.dumps({"unet.lora_alpha": 16, "unet.alpha_pattern": patterns})}

    config = peft_config(read_lora(loras.save(tensors, tmp_path / "l.safetensors", told)), "unet")

    assert config.alpha_of("down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q") == 2
    assert config.alpha_of("mid_block_resnets_0_conv1") == 1
    assert config.alpha_of("conv_in") == config.alpha_of("mid_block_resnets_0_xconv1") == 16


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("role", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_a_lora_with_values_that_are_not_finite_is_called_damaged(role, value, networks, tmp_path):
    tensors = loras.kohya(loras.pairs(networks, ("unet",)))
    name = next(name for name in sorted(tensors) if name.endswith(role))
    tensors[name] = torch.full_like(tensors[name], value)

    said = refused(networks, tensors, tmp_path)

    assert f"lora.safetensors: {name} holds values that are not finite. The file is damaged." in said


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.uint8])
def test_a_lora_that_is_not_of_floats_is_refused(dtype, networks, tmp_path):
    tensors = loras.kohya(loras.pairs(networks, ("unet",)))
    name = next(name for name in sorted(tensors) if name.endswith("lora_up.weight"))

    assert f"{name} is of type" in refused(networks, tensors | {name: torch.ones(64, 4).to(dtype)}, tmp_path)


def test_an_alpha_may_be_a_whole_number(networks, tmp_path):
    tensors = loras.kohya(loras.pairs(networks, ("unet",)))
    whole = {name: t.to(torch.int64) if name.endswith("alpha") else t for name, t in tensors.items()}

    found, wanted = (
        fused(networks, "unet", (loras.save(one, tmp_path / f"{n}.safetensors"), 1.0))
        for n, one in enumerate((whole, tensors))
    )
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\x80\x02}q\x00.", "lora.safetensors: a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
        (b'{"message": "log in"}', "an answer from the site, not the file: «log in»"),
    ],
)
def test_a_file_called_a_lora_is_named_as_what_it_is(content, said, tmp_path):
    path = tmp_path / "lora.safetensors"
    path.write_bytes(content)

    with pytest.raises(LoraError, match=said):
        read_lora(path)


def test_another_kind_of_file_in_the_column_is_named(tmp_path):
    path = loras.save({"decoder.conv_in.weight": torch.ones(4, 4, 3, 3)}, tmp_path / "vae.safetensors")

    with pytest.raises(LoraError, match=r"not a LoRA: decoder\.conv_in\.weight\. It is a VAE\."):
        read_lora(path)
