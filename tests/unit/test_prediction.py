"""What a UNet predicts is read from what the file says, asked where it does not say it, and never guessed."""

import json

import pytest
import torch
from safetensors.torch import save_file

from axbake.checkpoints.prediction import UnknownPrediction, UnreadableSidecar, read_sidecar
from axbake.networks.sampling import Sampling, SamplingError
from axbake.weights.files import read_sampling
from tests import tiny
from tests.unit.conftest import describe, import_part

LDM_YAML = "model:\n  target: ldm.models.diffusion.ddpm.LatentDiffusion\n  params:\n    linear_start: 0.00085\n"
SGM_YAML = """model:
  params:
    denoiser_config:
      params: {scaling_config: {target: sgm.modules.diffusionmodules.denoiser_scaling.VScaling}}
"""


@pytest.fixture(scope="module", params=tiny.FAMILIES)
def tensors(request):
    networks = tiny.FAMILIES[request.param]()
    return networks.family, tiny.single_file_tensors(networks)


@pytest.fixture
def sampling(tensors, tmp_path):
    """A function that imports the UNet of a file with more tensors, metadata or settings, and gives how it is run."""

    def of(extra=None, metadata=None, **settings):
        path = tmp_path / "model.safetensors"
        save_file(tensors[1] | (extra or {}), path, metadata=metadata)
        import_part(path, component="unet", weights=tmp_path / "unet.safetensors", **settings)
        return read_sampling(tmp_path / "unet.safetensors")

    return of


def schedule(last_is_noise):
    """`alphas_cumprod` of Stable Diffusion, or that of Lin et al. 2023."""
    alphas = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2, 0)
    roots = alphas.sqrt()
    shifted = (roots - roots[-1]) * roots[0] / (roots[0] - roots[-1])
    return shifted**2 if last_is_noise else alphas


def test_a_file_that_says_nothing_is_epsilon_in_one_family_and_a_question_in_the_other(tensors, sampling):
    if tensors[0] == "sd1":
        assert sampling() == Sampling("epsilon")
        return
    with pytest.raises(UnknownPrediction) as caught:
        sampling()
    said = str(caught.value)
    assert "does its UNet predict the noise (epsilon" in said
    assert "Neither the file nor a YAML beside it says so" in said
    assert "One run of the UNet looks like epsilon" in said or "One run of the UNet looks like v_prediction" in said
    assert "Fill in the column prediction of config/models.tsv" in said


@pytest.mark.parametrize(
    ("how", "wanted"),
    [
        ({"extra": {"v_pred": torch.empty(0)}}, Sampling("v_prediction")),
        ({"extra": {"v_pred": torch.empty(0), "ztsnr": torch.empty(0)}}, Sampling("v_prediction", True)),
        ({"extra": {"ztsnr": torch.empty(0)}}, Sampling("v_prediction", True)),
        ({"metadata": {"modelspec.prediction_type": "v"}}, Sampling("v_prediction")),
        ({"metadata": {"modelspec.prediction_type": "epsilon"}}, Sampling("epsilon")),
        ({"metadata": {"modelspec.architecture": "stable-diffusion-v2-768-v"}}, Sampling("v_prediction")),
        ({"metadata": {"modelspec.architecture": "stable-diffusion-v2-512"}}, Sampling("epsilon")),
        ({"sidecar": "v_prediction"}, Sampling("v_prediction")),
        ({"sidecar": "epsilon"}, Sampling("epsilon")),
        ({"prediction": "v_prediction"}, Sampling("v_prediction")),
        ({"extra": {"alphas_cumprod": schedule(True).float()}}, Sampling("v_prediction", True)),
        (
            {"extra": {"alphas_cumprod": schedule(True).half()}, "prediction": "v_prediction"},
            Sampling("v_prediction", True),
        ),
        ({"extra": {"alphas_cumprod": schedule(False).bfloat16()}, "prediction": "epsilon"}, Sampling("epsilon")),
        ({"extra": {"alphas_cumprod": torch.zeros(1000)}, "prediction": "epsilon"}, Sampling("epsilon")),
        ({"extra": {"alphas_cumprod": torch.zeros(10)}, "prediction": "epsilon"}, Sampling("epsilon")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_file_says_counts(sampling, how, wanted):
    assert sampling(**how) == wanted


def test_a_contradiction_is_a_question_that_the_table_answers(sampling):
    how = {"extra": {"v_pred": torch.empty(0)}, "metadata": {"modelspec.prediction_type": "epsilon"}}

    with pytest.raises(UnknownPrediction) as caught:
        sampling(**how)

    assert "The tensor v_pred says v_prediction; metadata modelspec.prediction_type says epsilon" in str(caught.value)
    assert sampling(**how, prediction="epsilon") == Sampling("epsilon")
    assert sampling(**how, prediction="v_prediction") == Sampling("v_prediction")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (LDM_YAML, "epsilon"),
        (LDM_YAML + '    parameterization: "v"\n', "v_prediction"),
        (LDM_YAML + "    parameterization: eps\n", "epsilon"),
        (SGM_YAML, "v_prediction"),
        (SGM_YAML.replace("VScaling", "EpsScaling"), "epsilon"),
        ("name: some other yaml\n", ""),
        ("", ""),
    ],
)
def test_the_yaml_beside_a_checkpoint_is_read(text, wanted, tmp_path):
    (tmp_path / "model.yaml").write_text(text)

    assert read_sidecar(tmp_path / "model.safetensors") == wanted


def test_no_yaml_says_nothing(tmp_path):
    assert read_sidecar(tmp_path / "model.safetensors") == ""


@pytest.mark.parametrize(
    "text", ["a: [", LDM_YAML + "    parameterization: x0\n", LDM_YAML + "    parameterization: [v]\n"]
)
def test_a_yaml_that_cannot_be_used_is_an_error(text, tmp_path):
    (tmp_path / "model.yaml").write_text(text)

    with pytest.raises(UnreadableSidecar, match=r"model\.yaml"):
        read_sidecar(tmp_path / "model.safetensors")


def test_the_description_says_why(tensors, tmp_path):
    path = tmp_path / "model.safetensors"
    save_file(tensors[1] | {"alphas_cumprod": schedule(False)}, path, metadata={"modelspec.prediction_type": "v"})

    describe(path, tmp_path / "checkpoint.json")

    said = json.loads((tmp_path / "checkpoint.json").read_text())
    assert said["prediction_type"] == "v_prediction"
    assert said["prediction_why"] == [
        "metadata modelspec.prediction_type says v_prediction",
        "alphas_cumprod is the schedule of Stable Diffusion",
    ]


def test_a_unet_of_one_step_refuses_other_rows():
    sampling = Sampling(steps=1, guided=False)

    sampling.check(scheduler="euler", steps=1, guidance_scale=1)
    with pytest.raises(SamplingError) as caught:
        sampling.check(scheduler="euler", steps=20, guidance_scale=7)
    assert "column steps: 20, wanted 1; column guidance_scale: 7, wanted 1" in str(caught.value)


def test_a_unet_distilled_for_lcm_refuses_other_schedulers():
    sampling = Sampling(guidance_embedded=True)

    sampling.check(scheduler="lcm", steps=4, guidance_scale=8)
    with pytest.raises(SamplingError, match="column scheduler: euler, wanted lcm"):
        sampling.check(scheduler="euler", steps=4, guidance_scale=8)
