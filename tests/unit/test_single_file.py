"""What is written back as a single file is read again, by axbake and by diffusers, without a value changed."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from axbake.families import FAMILIES
from axbake.networks.component import as_files
from axbake.weights.files import read_description
from axbake.weights.single_file import SingleFileError, write_single_file
from tests import tiny
from tests.unit.conftest import import_part


def written(networks, directory):
    """A model's imported weights by component, and the single file made of them."""
    checkpoint = tiny.save(networks, directory / "model.safetensors", layout="diffusers")
    family = FAMILIES[networks.family]
    weights = {component: directory / f"{component}.safetensors" for component in family.names}
    for component, path in weights.items():
        import_part(checkpoint, component=component, weights=path, family=family)
    write(weights, family, directory / "single_file.safetensors")
    return weights, directory / "single_file.safetensors"


def write(weights, family, single_file):
    write_single_file(
        [weights[component.name] for component in family.components],
        components=[as_files(component) for component in family.components],
        title=family.title,
        specification=family.specification,
        single_file=single_file,
    )


WITH_NAMES = [variant for variant in tiny.VARIANTS if variant != "sdxs"]  # LDM has none for an AutoencoderTiny


@pytest.mark.parametrize("variant", WITH_NAMES)
def test_it_gives_the_same_weights_again(variant, tmp_path):
    networks = tiny.VARIANTS[variant]()
    weights, single = written(networks, tmp_path)

    for component, path in weights.items():
        again = tmp_path / "again.safetensors"
        import_part(single, component=component, weights=again, family=FAMILIES[networks.family])

        assert again.read_bytes() == path.read_bytes(), component


@pytest.mark.parametrize("variant", WITH_NAMES)
def test_its_names_shapes_and_type_are_those_of_ldm(variant, tmp_path):
    networks = tiny.VARIANTS[variant](torch.float32)
    _, single = written(networks, tmp_path)
    wanted = tiny.single_file_tensors(networks)

    found = load_file(single)

    unused = {
        name for name in wanted if name.endswith((".text_projection", ".logit_scale")) or ".resblocks.23." in name
    }
    assert set(found) == set(wanted) - unused
    for name, tensor in found.items():
        assert torch.equal(tensor, wanted[name].to(torch.float16)), name
    with safe_open(single, "pt") as file:
        stated = file.metadata()["modelspec.prediction_type"]
    assert stated == {"epsilon": "epsilon", "v_prediction": "v"}[networks.prediction_type]


def test_a_vae_that_ldm_has_no_names_for_is_an_error(tmp_path):
    with pytest.raises(SingleFileError, match="The VAE is an AutoencoderTiny"):
        written(tiny.sdxs(), tmp_path)


def test_a_weight_that_fp16_cannot_hold_is_an_error(tmp_path):
    networks = tiny.sd1(torch.float32)
    weights, single = written(networks, tmp_path)
    tensors = load_file(weights["unet"])
    tensors["conv_in.bias"][0] = 1e6
    save_file(tensors, weights["unet"], metadata=read_description(weights["unet"]).as_metadata())

    with pytest.raises(SingleFileError, match=r"input_blocks\.0\.0\.bias: 1e\+06 is too large"):
        write(weights, FAMILIES["sd1"], single)
