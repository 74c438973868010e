"""What was measured is compared with what is wanted in one place: all faults at once, by component, and nothing written then."""

import json

import pytest

from axbake.judging import CompiledTooFar, ParityError, hold_parity, judge, judge_picture
from axbake.networks.component import DECODER, DENOISER, TEXT

WANTED = {"text_encoder": 60, "unet": 50}  # dB of PSNR
NEAR = {"text_encoder": 30, "unet": 20}  # dB of SQNR


def parity(component, decibels, **graphs):
    """What the check reports of a component, and of its graphs where it has several."""
    said = {"component": component, "output": "y", "psnr_db": decibels, "largest_error": 0.1}
    return said | ({"graphs": {name: {"psnr_db": one} for name, one in graphs.items()}} if graphs else {})


def check(component, decibels, **graphs):
    said = {"component": component, "emulated": True, "samples": 2, "outputs": {"y": {"sqnr_db": decibels}}}
    each = {name: {f"{name}_out": {"sqnr_db": one}} for name, one in graphs.items()}
    return said | ({"graphs": each} if graphs else {})


@pytest.fixture
def judged(tmp_path):
    """A function that judges what was said; gives the verdict, which an error leaves out."""

    def write(place, said):
        paths = [tmp_path / f"{place}-{number}.json" for number in range(len(said))]
        for path, content in zip(paths, said, strict=True):
            path.write_text(json.dumps(content))
        return paths

    def run(parities, checks, *, min_psnr=WANTED, min_sqnr=NEAR):
        verdict = tmp_path / "verdict.json"
        verdict.unlink(missing_ok=True)
        of = {"min_psnr": min_psnr, "min_sqnr": min_sqnr, "verdict": verdict}
        try:
            judge(write("parity", parities), write("check", checks), **of)
        except Exception:
            assert not verdict.exists()
            raise
        return json.loads(verdict.read_text())

    return run


def test_what_is_near_enough_is_written_with_what_was_wanted(judged):
    said = judged([parity("text_encoder", 61), parity("unet", 50)], [check("unet", 20), check("text_encoder", 30.5)])

    assert said == {"min_psnr_db": WANTED, "min_sqnr_db": {"unet": 20, "text_encoder": 30}}


def test_thresholds_are_by_component(judged):
    same = [parity("text_encoder", 55), parity("unet", 55)]

    with pytest.raises(ParityError) as caught:
        judged(same, [])

    assert str(caught.value) == (
        "text_encoder: onnx against torch is 55.0 dB, below the 60 dB of config parity/min_psnr/text_encoder; output: y."
        " The graph is not the network; do not bake it."
    )
    assert judged(same, [], min_psnr={"text_encoder": 55, "unet": 55})["min_psnr_db"] == {
        "text_encoder": 55,
        "unet": 55,
    }


def test_every_component_and_every_graph_that_is_too_far_is_told_at_once(judged):
    with pytest.raises(ParityError) as caught:
        judged([parity("text_encoder", 12.34), parity("unet", 49.9, down=90, mid=20, up=49)], [])

    lines = str(caught.value).splitlines()
    assert [line.partition(" is ")[0] for line in lines] == [
        f"{where}: onnx against torch" for where in ("text_encoder", "unet", "unet/mid", "unet/up")
    ]
    assert all("config parity/min_psnr/unet" in line for line in lines[1:])


def test_compiled_models_that_are_too_far_are_told_at_once_with_what_to_try(judged):
    with pytest.raises(CompiledTooFar) as caught:
        judged([], [check("text_encoder", 29.9), check("unet", 21, down=19, up=25)])

    first, second = str(caught.value).splitlines()
    assert first.startswith(
        "text_encoder: the compiled model is too far from its float graph: SQNR of y 29.9 dB, below the 30 dB of config"
        " compiled/min_sqnr/text_encoder. Try a finer precision (precision/text_encoder: U16)"
    )
    assert second.startswith("unet/down: the compiled model is too far from its float graph: SQNR of down_out 19.0 dB")
    assert "pulsar2/unet/quant/precision_analysis: true" in second


def test_of_several_outputs_those_that_are_too_far_are_named(judged):
    said = check("unet", 25)
    said["outputs"] |= {"a": {"sqnr_db": 3}, "b": {"sqnr_db": 4}}

    with pytest.raises(CompiledTooFar, match=r"SQNR of a 3\.0 dB, b 4\.0 dB, below the 20 dB"):
        judged([], [said])


def test_a_graph_that_is_not_the_network_is_told_before_what_was_compiled_of_it(judged):
    with pytest.raises(ParityError):
        judged([parity("unet", 1)], [check("unet", 1)])


def test_a_component_of_which_no_compiled_model_was_run_is_near_enough(judged):
    unchecked = {"component": "unet", "emulated": False, "samples": 0}

    assert judged([parity("unet", 99)], [unchecked])["min_sqnr_db"] == {"unet": 20}


def test_a_figure_that_is_the_threshold_passes_and_one_below_does_not(judged):
    assert judged([parity("unet", 50)], [check("unet", 20)])

    with pytest.raises(ParityError):
        judged([parity("unet", 49.99)], [])
    with pytest.raises(CompiledTooFar):
        judged([], [check("unet", 19.99)])


def test_another_threshold_needs_no_other_measurement(judged):
    measured = [parity("unet", 55)], [check("unet", 22)]

    assert judged(*measured)
    with pytest.raises(ParityError, match="below the 56 dB"):
        judged(*measured, min_psnr={"unet": 56})
    with pytest.raises(CompiledTooFar, match="below the 23 dB"):
        judged(*measured, min_sqnr={"unet": 23})


def test_a_compile_is_held_by_its_own_components_parity(tmp_path):
    path = tmp_path / "unet.json"
    path.write_text(json.dumps(parity("unet", 55, down=55, up=40)))

    hold_parity(path, min_psnr=40)
    with pytest.raises(ParityError, match=r"^unet/up: onnx against torch is 40\.0 dB, below the 41 dB"):
        hold_parity(path, min_psnr=41)
    assert [found.name for found in tmp_path.iterdir()] == ["unet.json"]


LIMITS = {"good": {"psnr": 30, "ssim": 0.9}, "poor": {"psnr": 20, "ssim": 0.7}}
ROLES = {"text_encoder": TEXT, "unet": DENOISER, "vae_decoder": DECODER}


def picture(psnr, ssim, *, none=60.0, first_steps=120.0, **alone):
    """The verdict on a picture; *alone*: dB where one component alone is quantised."""
    floats = {"latent_psnr_db": first_steps, "image_psnr_db": none}
    quantised = {"all": {"image_psnr_db": psnr}, "none": floats}
    quantised |= {name: {"image_psnr_db": alone.get(name, 50.0)} for name in ROLES}
    return judge_picture({"image_psnr_db": psnr, "image_ssim": ssim}, quantised, ROLES, LIMITS)


@pytest.mark.parametrize(
    ("psnr", "ssim", "verdict"),
    [
        (30, 0.9, "good"),
        (29.9, 0.95, "fair"),
        (35, 0.89, "fair"),
        (20, 0.7, "fair"),
        (19.9, 0.95, "poor"),
        (35, 0.69, "poor"),
    ],
)
def test_a_picture_has_a_verdict_by_both_figures(psnr, ssim, verdict):
    assert picture(psnr, ssim)["verdict"] == verdict


def test_a_fair_picture_names_the_figure_that_is_not_good():
    assert picture(25.92, 0.95)["why"] == "picture against reference: PSNR 25.92 dB, below 30 (config picture/good)"


def test_a_poor_picture_says_why_and_what_to_try():
    said = picture(17.97, 0.61, unet=25.0, vae_decoder=18.5)

    assert (
        said["why"]
        == "picture against reference: PSNR 17.97 dB, below 20 and SSIM 0.61, below 0.7 (config picture/poor)"
    )
    assert said["advice"] == [
        "the VAE decoder loses most: 18.5 dB when only it is quantised; use a finer precision (precision/vae_decoder)",
        "another VAE in the column vae",
    ]
    assert "more calibration samples" in picture(15, 0.5, unet=16.0)["advice"][1]


def test_of_the_denoisers_error_what_its_inputs_bring_is_not_its_own():
    limits, of = LIMITS, {"image_psnr_db": 16.0, "with": ["text_encoder"]}
    floats = {"latent_psnr_db": 120.0, "image_psnr_db": 60.0}
    quantised = {"none": floats, "vae_decoder": {"image_psnr_db": 30.0}, "unet": of}

    for alone, worst in ((17.0, "text encoder"), (25.0, "UNet")):
        known = quantised | {"text_encoder": {"image_psnr_db": alone}}
        (advice, *_) = judge_picture({"image_psnr_db": 15.8, "image_ssim": 0.5}, known, ROLES, limits)["advice"]
        assert advice.startswith(f"the {worst} loses most: ")
    assert "16.0 dB when it and the text encoder are quantised" in advice


def test_what_quantisation_is_not_to_blame_for_is_said():
    for part in ("none", "first_steps"):
        (advice,) = picture(18.0, 0.6, **{part: 19.0})["advice"]
        assert advice.startswith("the float graphs are as far from the reference (19.0 dB)")


def test_a_good_picture_needs_no_word():
    assert picture(40, 0.98) == {"verdict": "good", "why": "", "advice": []}
