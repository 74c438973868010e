"""Merges that recipes name, compared with their formulas; and what is refused."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from axbake.checkpoints.containers import files_of, form_of
from axbake.checkpoints.conversion import convert_checkpoint
from axbake.checkpoints.recipes import RecipeError, read_recipe
from axbake.families import FAMILIES
from axbake.families.family import Family
from axbake.networks.component import as_files
from axbake.weights.files import read_sampling
from tests import tiny
from tests.unit.conftest import SD1, import_part

Tensors = dict[str, torch.Tensor]


def variant(networks: tiny.Networks, seed: int) -> tiny.Networks:
    """*networks* with other weights, of its precision."""
    generator = torch.Generator().manual_seed(seed)
    for network in (networks.text_encoder, networks.unet, networks.vae):
        for parameter in network.parameters():
            moved = parameter.data + 0.1 * torch.randn(parameter.shape, generator=generator)
            parameter.data = moved.to(networks.dtype).float()
    return networks


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[Path, tiny.Networks]]:
    """Three Stable Diffusion 1.x checkpoints of different layouts and precisions."""
    directory = tmp_path_factory.mktemp("models")
    made = {}
    for seed, (name, layout, dtype) in enumerate(
        [("a", "ldm", torch.float16), ("b", "diffusers", torch.float16), ("c", "converted", torch.bfloat16)]
    ):
        networks = variant(tiny.sd1(dtype), seed)
        made[name] = tiny.save(networks, directory / f"{name}.safetensors", layout=layout), networks
    return made


def entry(path: Path) -> dict[str, str]:
    return {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def write(tmp_path: Path, models: dict, *steps: dict, **changes) -> Path:
    """A recipe of all *models* that the steps use."""
    used = {step[name] for step in steps for name in "abc" if name in step}
    checkpoints = {name: entry(path) for name, (path, _) in models.items() if name in used}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"checkpoints": checkpoints, "steps": list(steps)} | changes))
    return path


def merge(recipe: Path, family: Family = SD1) -> Path:
    """The checkpoint that *recipe* says, as the workflow makes it."""
    checkpoint, components = recipe.with_name("merged.safetensors"), [as_files(one) for one in family.components]
    convert_checkpoint(files_of(recipe), checkpoint=checkpoint, components=components, latents=family.latents)
    return checkpoint


def merged(recipe: Path, component: str, family: Family = SD1) -> Tensors:
    weights = recipe.with_name(f"{component}.safetensors")
    import_part(merge(recipe, family), component=component, weights=weights)
    return load_file(weights)


def tensors_of(networks: tiny.Networks, component: str) -> Tensors:
    return {name.removeprefix("text_model."): t for name, t in networks.component(component).state_dict().items()}


def assert_merged(
    found: Tensors, models: dict, component: str, formula: Callable[..., torch.Tensor], precision
) -> None:
    """*formula*: of a tensor's name, and of it in each model."""
    sources = [tensors_of(networks, component) for _, networks in models.values()]
    assert found.keys() == sources[0].keys()
    for name, tensor in found.items():
        assert tensor.dtype == precision
        torch.testing.assert_close(tensor, formula(name, *(source[name] for source in sources)).to(precision))


def test_a_weighted_sum_with_shares_of_blocks(models, tmp_path):
    blocks = {"IN01": 0.9, "M00": 0, "OUT11": 1, "BASE": 0.5, "vae": 0}
    recipe = write(tmp_path, models, {"method": "weighted_sum", "a": "a", "b": "b", "alpha": 0.25, "blocks": blocks})
    places = {
        "down_blocks.0.resnets.0": 0.9,
        "down_blocks.0.attentions.0": 0.9,
        "mid_block": 0,
        "up_blocks.3.resnets.2": 1,
    }
    places |= {"up_blocks.3.attentions.2": 1, "conv_out": 1, "conv_norm_out": 1, "time_embedding": 0.5}

    def share(name: str) -> float:
        return next((share for start, share in places.items() if name.startswith(f"{start}.")), 0.25)

    assert form_of(recipe) == "recipe"
    unet = merged(recipe, "unet")
    assert_merged(unet, models, "unet", lambda name, a, b, c: a + share(name) * (b - a), torch.float16)
    for component, alpha in {"text_encoder": 0.5, "vae_decoder": 0}.items():
        weights = recipe.with_name(f"{component}.safetensors")
        import_part(recipe.with_name("merged.safetensors"), component=component, weights=weights)
        assert_merged(
            load_file(weights), models, component, lambda name, a, b, c, s=alpha: a + s * (b - a), torch.float16
        )


def test_a_difference_is_added_to_an_earlier_step(models, tmp_path):
    steps = [
        {"name": "mix", "method": "weighted_sum", "a": "a", "b": "b", "alpha": 0.5},
        {"method": "add_difference", "a": "mix", "b": "b", "c": "c", "alpha": 0.8},
    ]
    recipe = write(tmp_path, models, *steps)

    def difference(name: str, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        return (a + b) / 2 + 0.8 * (b - c)

    # c is in bfloat16, the others in fp16: float32 holds both.
    assert_merged(merged(recipe, "unet"), models, "unet", difference, torch.float32)
    weights = recipe.with_name("text_encoder.safetensors")
    import_part(recipe.with_name("merged.safetensors"), component="text_encoder", weights=weights)
    assert_merged(load_file(weights), models, "text_encoder", difference, torch.float32)


def test_a_merge_predicts_what_its_checkpoints_do(tmp_path):
    models = {
        name: (tiny.save(variant(tiny.sd2(), seed), tmp_path / f"{name}.safetensors"), None)
        for seed, name in enumerate("ab")
    }
    recipe = write(tmp_path, models, {"method": "weighted_sum", "a": "a", "b": "b", "alpha": 0.5})
    merged(recipe, "unet", FAMILIES["sd2"])
    assert read_sampling(recipe.with_name("unet.safetensors")).prediction_type == "v_prediction"

    models["b"][0].with_suffix(".yaml").write_text("model: {params: {parameterization: eps}}")
    with pytest.raises(RecipeError, match="predict different things"):
        merge(recipe, FAMILIES["sd2"])


STEP = {"method": "weighted_sum", "a": "a", "b": "b", "alpha": 0.25}


@pytest.mark.parametrize(
    ("steps", "said"),
    [
        ([STEP, STEP | {"b": "z"}], "steps/2/b: 'z' is not one of a, b"),
        ([STEP | {"method": "add_difference"}], "steps/1: add_difference of a, b; wanted a, b, c"),
        ([STEP | {"c": "c"}], "steps/1: weighted_sum of a, b, c; wanted a, b"),
        ([STEP | {"method": "sum"}], "'sum' is not one of ['weighted_sum', 'add_difference']"),
        ([STEP | {"alpha": 40}], "steps/1/alpha: 40, wanted a number from -10 to 10"),
        ([STEP | {"alpha": float("nan")}], "steps/1/alpha: nan, wanted a number"),
        ([STEP | {"alpha": "much"}], "steps/0/alpha: 'much' is not of type 'number'"),
        ([STEP | {"blocks": {"IN12": 1}}], "steps/1/blocks/IN12: not one of BASE, M00, IN00"),
        ([STEP | {"name": "a"}], "steps/1/name: 'a' appears twice"),
        ([STEP | {"name": "x"}, STEP], "no step uses x"),
        ([STEP | {"weight": 1}], "('weight' was unexpected)"),
    ],
)
def test_faults_of_a_recipe_are_told(steps, said, models, tmp_path):
    with pytest.raises(RecipeError) as raised:
        read_recipe(write(tmp_path, models, *steps))

    assert said in str(raised.value)


def test_files_that_are_not_meant_are_told(models, tmp_path):
    path = models["a"][0]
    digest = entry(path)["sha256"]
    checkpoints = {
        "a": {"path": str(tmp_path / "gone.safetensors"), "sha256": digest},
        "b": {"path": str(path), "sha256": "0123456789"},
        "c": {"path": "pickle.ckpt", "sha256": digest},
    }
    steps = [STEP | {"c": "c", "method": "add_difference"}]

    with pytest.raises(RecipeError) as raised:
        files_of(write(tmp_path, models, *steps, checkpoints=checkpoints))
    for said in (
        f"a: {tmp_path}/gone.safetensors is not there",
        f"b: {path} has SHA-256 {digest}, the recipe says 0123456789",
        "c: pickle.ckpt is not a .safetensors file",
    ):
        assert f"checkpoints/{said}" in str(raised.value)


@pytest.mark.parametrize("text", ["", "- a\n", "a: [", "a: 2020-13-45", "\x00", "checkpoints: {}\nsteps: []\n"])
def test_what_is_no_recipe_is_told(text, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)

    with pytest.raises(RecipeError, match=r"recipe\.yaml: "):
        read_recipe(path)


def test_checkpoints_of_different_architectures_are_told(models, tmp_path):
    other = tiny.save(tiny.bk_sdm_base(), tmp_path / "bk.safetensors")
    recipe = write(tmp_path, {"a": models["a"], "b": (other, None)}, STEP)

    with pytest.raises(RecipeError, match=r"a and b are of different architectures.*different in unet\)\. Merge only"):
        merge(recipe)


def test_shares_that_make_weights_too_large_are_told(models, tmp_path):
    huge = tiny.sd1()
    huge.unet.conv_in.weight.data[0, 0, 0, 0] = 60000
    path = tiny.save(huge, tmp_path / "huge.safetensors")
    recipe = write(tmp_path, {"a": models["a"], "b": (path, None)}, STEP | {"alpha": 2})

    with pytest.raises(RecipeError, match=r"unet\.conv_in\.weight: the merge is too large for torch.float16"):
        merge(recipe)


def test_steps_that_use_a_step_twice_take_no_longer_for_it(models, tmp_path):
    """Written out, these would be 2 to the 39th merges."""
    steps = [STEP | {"name": "s0"}]
    steps += [
        {"name": f"s{n}", "method": "weighted_sum", "a": f"s{n - 1}", "b": f"s{n - 1}", "alpha": 0.5}
        for n in range(1, 40)
    ]
    once = merged(write(tmp_path, models, STEP), "unet")

    assert all(torch.equal(t, once[name]) for name, t in merged(write(tmp_path, models, *steps), "unet").items())


def test_many_steps_one_after_the_other_are_a_recipe(models, tmp_path):
    steps = [STEP | {"name": "s0"}]
    steps += [
        {"name": f"s{n}", "method": "weighted_sum", "a": f"s{n - 1}", "b": "b", "alpha": 0.5} for n in range(1, 60)
    ]

    assert len(read_recipe(write(tmp_path, models, *steps)).steps) == 60


def test_a_recipe_of_many_faults_tells_some(models, tmp_path):
    with pytest.raises(RecipeError) as raised:
        read_recipe(write(tmp_path, models, *[STEP | {"b": "z" * 1000}] * 300))

    assert str(raised.value).count("\n") == 22 and "and more" in str(raised.value)
    assert len(str(raised.value)) < 10_000


@pytest.mark.parametrize("path", ["/dev/zero", "a" * 300, "a\0b"])
def test_a_recipes_checkpoint_that_is_no_file_is_told(path, models, tmp_path):
    checkpoints = {name: {"path": f"{path}.safetensors", "sha256": "0" * 10} for name in "ab"}
    if path == "/dev/zero":
        (tmp_path / "zero.safetensors").symlink_to(path)
        checkpoints["a"]["path"] = checkpoints["b"]["path"] = str(tmp_path / "zero.safetensors")

    with pytest.raises(RecipeError, match="a device" if path == "/dev/zero" else "is not there"):
        read_recipe(write(tmp_path, models, STEP, checkpoints=checkpoints))
