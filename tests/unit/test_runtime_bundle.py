"""A bundle's programs load what its manifest says, by role, and draw it: components of several graphs, two text encoders."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, fields, replace
from pathlib import Path

import jinja2
import numpy as np
import onnx
import pytest
from onnx.helper import make_node, make_tensor_value_info
from PIL import Image

from axbake.runtime import command
from axbake.runtime.added import load_added
from axbake.runtime.bundle import TYPES, read_bundle
from axbake.runtime.errors import BundleError
from axbake.runtime.img2img import read_picture, redraw
from axbake.runtime.sampler import Schedule
from axbake.runtime.session import EMULATOR, open_model, open_models
from axbake.runtime.tokenizer import ClipTokenizer
from axbake.runtime.txt2img import Models, draw
from axbake.runtime.values import Conditioning, Latents, Picture
from tests.chains import cut_graph

ROOT = Path(__file__).parents[2]
CLIP = ROOT / "resources" / "clip"
STEPS = 3
LATENTS = Latents(channels=6, factor=4, scale=0.7, shift=0.1, patch=2)
CONDITIONING = Conditioning(("text_encoder", "text_encoder_2"))
PICTURE = Picture(
    model="tiny", prompt="a (red:1.4) cat", negative_prompt="blurry", height=24, width=16, scheduler="euler", steps=STEPS,
    guidance_scale=4, seed=7, prompt_chunks=2, clip_skip=2,
)  # fmt: skip
LATENT, CONTEXT, ROW = (1, 6, 6, 4), (1, 154, 5), (1, 3)
WIDTHS = {"text_encoder": 2, "text_encoder_2": 3}
FLOAT = onnx.TensorProto.FLOAT


def network(nodes, inputs, output, constants, *, ids=False):
    value, kind = make_tensor_value_info, onnx.TensorProto.INT64 if ids else FLOAT
    graph = onnx.helper.make_graph(
        nodes,
        "network",
        [value(name, kind, shape) for name, shape in inputs.items()],
        [value(name, FLOAT, shape) for name, shape in output.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = onnx.helper.make_opsetid("", 18)
    return onnx.helper.make_model(graph, producer_name=EMULATOR, opset_imports=[opset], ir_version=10)


def networks():
    """A model of two text encoders, whose latents have six channels; of weights that are noise."""
    random = np.random.default_rng(0)

    def noise(*shape):
        return random.normal(size=shape).astype(np.float32)

    texts = {
        name: network(
            [make_node("Gather", ["table", "ids"], ["states"])],
            {"ids": (1, 77)},
            {"states": (1, 77, width)},
            {"table": noise(49408, width) + 1},
            ids=True,
        )
        for name, width in WIDTHS.items()
    }
    denoiser = network(
        [
            make_node("Conv", ["sample", "k0"], ["skip"]),
            make_node("ReduceMean", ["encoder_hidden_states", "tokens"], ["text"], keepdims=0),
            make_node("MatMul", ["text", "w0"], ["text_channels"]),
            make_node("Reshape", ["text_channels", "pixel"], ["text_pixel"]),
            make_node("Add", ["skip", "text_pixel"], ["h0"]),
            make_node("Tanh", ["h0"], ["h1"]),
            make_node("MatMul", ["row", "w1"], ["time_channels"]),
            make_node("Reshape", ["time_channels", "pixel"], ["time_pixel"]),
            make_node("Mul", ["h1", "time_pixel"], ["h2"]),
            make_node("Add", ["h2", "skip"], ["h3"]),
            make_node("Conv", ["h3", "k1"], ["out_sample"]),
        ],
        {"sample": LATENT, "encoder_hidden_states": CONTEXT, "row": ROW},
        {"out_sample": LATENT},
        {
            "k0": noise(6, 6, 1, 1), "k1": noise(6, 6, 1, 1), "w0": noise(5, 6), "w1": noise(3, 6),
            "tokens": np.array([1]), "pixel": np.array([1, 6, 1, 1]),
        },
    )  # fmt: skip
    decoder = network(
        [make_node("ConvTranspose", ["x", "k"], ["large"], strides=[4, 4]), make_node("Tanh", ["large"], ["image"])],
        {"x": LATENT},
        {"image": (1, 3, 24, 16)},
        {"k": noise(6, 3, 4, 4)},
    )
    encoder = network(
        [make_node("Conv", ["image", "k"], ["moments"], strides=[4, 4])],
        {"image": (1, 3, 24, 16)},
        {"moments": (1, 12, 6, 4)},
        {"k": noise(12, 3, 4, 4) / 10},
    )
    return {**texts, "transformer": denoiser, "vae_encoder": encoder, "vae_decoder": decoder}


ROLES = {
    "text_encoder": "text",
    "text_encoder_2": "text",
    "transformer": "denoiser",
    "vae_encoder": "encoder",
    "vae_decoder": "decoder",
}
CUTS = {"transformer": (3, 9)}  # the skip crosses both


def schedule():
    """A scheduler of three steps that goes a part of the way along each output, as Euler's does."""
    parts = np.array([0.5, 0.3, 0.2])
    coefficients = np.zeros((STEPS, 1 + 2 * STEPS))
    coefficients[:, 0] = 1
    for step in range(STEPS):
        coefficients[step:, 1 + step] = -parts[step]
    late = [coefficients[: STEPS - k, : 1 + 2 * (STEPS - k)] * 0.9 for k in range(1, STEPS)]
    return Schedule(
        scheduler="euler", timesteps=np.array([900, 500, 100], np.float32), input_scale=np.array([0.5, 0.7, 0.9]),
        time_embedding=np.random.default_rng(1).normal(size=(STEPS, 3)).astype(np.float32),
        init_noise_sigma=np.array(2.0), coefficients=coefficients, draws_noise=np.zeros(STEPS, bool), guidance_embedded=False,
        picture_scale=np.ones(STEPS), noise_scale=np.array([2.0, 1.0, 0.5]),
        late_coefficients=np.concatenate([rows.reshape(-1) for rows in late]),
    )  # fmt: skip


def arrays_of_schedule():
    """Its arrays, as a file has them: without `guided`, which only schedules have that leave guidance out of some steps."""
    return {name: value for name, value in asdict(schedule()).items() if value is not None}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A bundle of the layout `axbake` whose denoiser is three graphs."""
    folder = tmp_path_factory.mktemp("bundle")
    models = {}
    for name, model in networks().items():
        if name in CUTS:
            files = cut_graph(model, CUTS[name], folder / name, suffix=".axmodel")
        else:
            files = [folder / f"{name}.axmodel"]
            onnx.save(model, files[0])
        models[name] = {"role": ROLES[name], "files": [path.relative_to(folder).as_posix() for path in files]}
    np.savez(folder / "schedule.npz", **arrays_of_schedule())
    (folder / "embeddings.json").write_text(json.dumps({"embeddings": {}, "pad_token_id": 49407}))
    (folder / "tokenizer").mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(CLIP / name, folder / "tokenizer" / name)
    settings = {name: value for name, value in asdict(PICTURE).items() if name not in ("model", "strength")}
    manifest = {
        "format": 2,
        "layout": "axbake",
        "model": "tiny",
        "emulated": True,
        "models": models,
        "conditioning": asdict(CONDITIONING),
        "latents": asdict(LATENTS),
        "settings": {**settings, "program": "axera", "prediction_type": "flow"},
    }
    files = [path for path in folder.rglob("*") if path.is_file()]
    manifest["files"] = {
        path.relative_to(folder).as_posix(): {"sha256": "", "bytes": path.stat().st_size} for path in files
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture(scope="module")
def whole(bundle, tmp_path_factory):
    """The same models, each in one graph, loaded one by one."""
    folder = tmp_path_factory.mktemp("whole")
    sessions = {}
    for name, model in networks().items():
        onnx.save(model, folder / f"{name}.onnx")
        sessions[name] = open_model(folder / f"{name}.onnx")
    texts = tuple(sessions[name] for name in CONDITIONING.encoders)
    return Models(texts, sessions["transformer"], sessions["vae_decoder"], sessions["vae_encoder"])


HOW = {"latents": LATENTS, "conditioning": CONDITIONING}


def run(bundle, place, *arguments, program="txt2img"):
    """What a program drew and the times that it wrote."""
    options = ["--output", str(place / "image.png"), "--timings", str(place / "t.json"), "--threads", "1"]
    assert command.run(program, bundle, [*arguments, *options]) == 0
    return Image.open(place / "image.png"), json.loads((place / "t.json").read_text())


def test_txt2img_draws_what_the_same_models_in_one_graph_each_draw(bundle, whole, tmp_path):
    wanted = draw(whole, ClipTokenizer(CLIP), schedule(), PICTURE, **HOW)

    image, times = run(bundle, tmp_path)

    assert np.array_equal(np.asarray(image), wanted.image) and len(np.unique(wanted.image)) > 50
    assert image.text["parameters"] == PICTURE.parameters()
    runs = {"text_encoder": 4, "text_encoder_2": 4, "transformer": 6, "vae_decoder": 1}  # two prompts of two chunks
    assert list(times["load_seconds"]) == ["text_encoder", "text_encoder_2", "transformer", "vae_decoder"]
    assert {name: len(seconds) for name, seconds in times["pictures"][0]["runs"].items()} == runs


def test_img2img_loads_the_encoder_too_and_draws_over_a_picture(bundle, whole, tmp_path):
    pixels = np.random.default_rng(2).integers(0, 256, (24, 16, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "over.png")
    picture = replace(PICTURE, strength=0.7, seed=9, prompt="a dog")
    wanted = redraw(
        read_picture(tmp_path / "over.png", height=24, width=16), whole, ClipTokenizer(CLIP), schedule(), picture, **HOW
    )

    options = ["--strength", "0.7", "--seed", "9", "--prompt", "a dog"]
    image, times = run(bundle, tmp_path, str(tmp_path / "over.png"), *options, program="img2img")

    assert wanted.latents.shape == (2, *LATENT)
    assert np.array_equal(np.asarray(image), wanted.image)
    assert image.text["parameters"] == picture.parameters()
    assert len(times["pictures"][0]["runs"]["vae_encoder"]) == 1
    assert list(times["load_seconds"]) == [
        *("text_encoder", "text_encoder_2", "transformer", "vae_encoder", "vae_decoder")
    ]


def test_the_order_of_the_text_encoders_is_the_conditionings(bundle, tmp_path):
    swapped = copy_of(
        bundle, tmp_path / "b", conditioning={"encoders": ["text_encoder_2", "text_encoder"], "joined": "channels"}
    )
    first, second = (tmp_path / name for name in ("first", "second"))
    for place in (first, second):
        place.mkdir()

    image, _ = run(bundle, first)
    other, times = run(swapped, second)

    assert list(times["load_seconds"])[:2] == ["text_encoder_2", "text_encoder"]
    assert not np.array_equal(np.asarray(image), np.asarray(other))


def test_the_manifest_is_read_as_values(bundle):
    read = read_bundle(bundle)

    assert (read.latents, read.conditioning, read.picture) == (LATENTS, CONDITIONING, PICTURE)
    assert read.of_role("text") == ["text_encoder", "text_encoder_2"] and read.of_role("denoiser") == ["transformer"]
    session, seconds = read.open("transformer", runtime="auto", device=0, threads=1)
    assert (session.component, len(session.graphs)) == ("transformer", 3) and seconds > 0
    assert list(session.inputs) == ["sample", "encoder_hidden_states", "row"]


def copy_of(bundle, folder, **changed):
    """The bundle with other entries in its manifest; None: without that entry."""
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text()) | changed
    manifest = {name: value for name, value in manifest.items() if value is not None}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


UNET = {"role": "denoiser", "files": ["transformer/part_00.axmodel"]}
TEXT = {"role": "text", "files": ["text_encoder.axmodel"]}
REFUSED = {
    "format 1": ({"format": 1}, r"layout and format \('axbake', 1\); wanted \('axbake', 2\)\. Make the bundle again"),
    "no latents": ({"latents": None}, r"KeyError: 'latents'; not a manifest of format 2\. Make the bundle again"),
    "latents with an entry of another version": (
        {"latents": {"channels": 4, "factor": 8, "colour": 1}},
        "TypeError: .*'colour'; not a manifest",
    ),
    "latents of three means": ({"latents": {"channels": 4, "factor": 8, "mean": [1, 2, 3]}}, "4 channels with 3 means"),
    "another way to join": ({"conditioning": {"encoders": [], "joined": "tokens"}}, "joined by 'tokens'"),
    "an encoder that the conditioning does not name": (
        {"conditioning": {"encoders": ["text_encoder"], "joined": "channels"}},
        r"models of role text: \['text_encoder', 'text_encoder_2'\], conditioning of \['text_encoder'\]",
    ),
    "a role that is none": ({"models": {"unet": {**UNET, "role": "unet"}}}, "wanted a role of text, denoiser, encoder"),
    "no files": ({"models": {"unet": {**UNET, "files": []}}}, "unet: .* and files of the bundle"),
    "a file outside": ({"models": {"unet": {**UNET, "files": ["../x"]}}}, "unet: .* and files of the bundle"),
    "models as a list": ({"models": []}, "AttributeError: .*; not a manifest of format 2"),
    "emulated as a word": ({"emulated": "no"}, "emulated: 'no', wanted true or false; not a manifest"),
    "a name that is none": ({"model": 3}, "model: 3, wanted str; not a manifest"),
    "a factor as text": ({"latents": {"channels": 4, "factor": "8"}}, "factor: '8', wanted int; not a manifest"),
    "means as text": ({"latents": {"channels": 1, "factor": 8, "mean": ["a"], "std": ["b"]}}, "mean: .*, wanted tuple"),
    "a screen's commands": ({"layout": "\x1b[2J" * 999}, r"layout and format \('\\x1b\[2J"),
    "no seed": ({"settings": {"prompt": "a"}}, "KeyError: 'negative_prompt'; not a manifest"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_manifest_that_is_not_of_this_format_is_refused(bundle, tmp_path, what):
    changed, said = REFUSED[what]
    folder = copy_of(bundle, tmp_path / "bundle", **changed)

    with pytest.raises(BundleError, match=said):
        read_bundle(folder)
    assert command.run("txt2img", folder, ["--output", str(tmp_path / "image.png")]) == 1
    assert not (tmp_path / "image.png").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("schedule.npz", b"", "BadZipFile"),
        ("schedule.npz", {"timesteps": np.array([1j])}, r"timesteps: complex128 \(1,\)"),
        ("schedule.npz", {"coefficients": np.full((3, 7), np.nan)}, "coefficients: not of the type .* or not finite"),
        (
            "schedule.npz",
            {"timesteps": np.ones(2, np.float32)},
            "2 steps, but input_scale, time_embedding, draws_noise",
        ),
        ("schedule.npz", {"guided": np.ones(2, bool)}, "3 steps, but guided of another number"),
        ("schedule.npz", {"scheduler": np.array(["a"], object)}, "allow_pickle"),
        ("schedule.npz", {"x": np.zeros(600_000_000, np.uint8)}, "wanted 500000000 at most"),
        ("embeddings.json", b"[" * 10**5, "RecursionError"),
        ("embeddings.json", b"[]", "not an object"),
        ("embeddings.json", b'{"embeddings": {"a": [1.5]}, "pad_token_id": 1}', "wanted a list of token ids"),
        ("embeddings.json", b'{"embeddings": {}, "pad_token_id": -1}', "wanted a list of token ids"),
        ("tokenizer/vocab.json", b"{", "wanted CLIP's"),
        ("tokenizer/vocab.json", b"{}", "wanted CLIP's|no token"),
    ],
)
def test_a_damaged_file_of_a_bundle_is_named(bundle, tmp_path, name, content, said):
    folder = copy_of(bundle, tmp_path / "bundle", files={})
    if isinstance(content, dict):
        np.savez_compressed(folder / name, **{**arrays_of_schedule(), **content})
    else:
        (folder / name).write_bytes(content)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"] = {path: {"bytes": (folder / path).stat().st_size} for path in read_files(bundle)}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    whole = read_bundle(folder)

    with pytest.raises(BundleError, match=said) as refused:
        whole.schedule(whole.picture.steps)
        whole.tokenizer()
    assert name in str(refused.value) or "vocab.json" in str(refused.value)


def read_files(bundle):
    return json.loads((bundle / "manifest.json").read_text())["files"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weight_1": np.ones((8, 4, 2))}, "weight_1: float64"),
        ({"bias_2": np.ones(7, np.float32)}, "wanted 8 each"),
        ({"weight_2": np.full((8, 8), np.inf)}, "or not finite"),
        ({"bias_1": np.array("x")}, "bias_1: <U1"),
    ],
)
def test_a_damaged_added_embedding_is_named(tmp_path, changed, said):
    shapes = {"weight_1": (8, 16), "bias_1": (8,), "weight_2": (8, 8), "bias_2": (8,)}
    arrays = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    path = tmp_path / "added_embedding.npz"
    np.savez(path, **arrays)
    assert load_added(path).weight_1.shape == (8, 16)
    np.savez(path, **{**arrays, **changed})

    with pytest.raises(BundleError, match=said) as refused:
        load_added(path)
    assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize("kind", [Picture, Latents, Conditioning])
def test_every_value_of_a_manifest_has_a_type_that_is_checked(kind):
    assert {field.type for field in fields(kind)} <= set(TYPES)


def test_a_program_says_which_role_is_missing_or_there_twice(bundle, tmp_path):
    models = json.loads((bundle / "manifest.json").read_text())["models"]
    without = {name: entry for name, entry in models.items() if entry["role"] != "encoder"}
    textual = copy_of(bundle, tmp_path / "textual", models=without)
    twice = copy_of(bundle, tmp_path / "twice", models={**models, "unet": UNET})

    run(textual, tmp_path)
    with pytest.raises(BundleError, match="models of role encoder: none; wanted one"):
        read_bundle(textual).of_role("encoder")
    with pytest.raises(BundleError, match="models of role denoiser: transformer, unet; wanted one"):
        read_bundle(twice).of_role("denoiser")


def test_a_bundle_that_is_not_whole_is_refused(bundle, tmp_path):
    folder = copy_of(bundle, tmp_path / "bundle")
    (folder / "transformer" / "part_01.axmodel").unlink()
    (folder / "vae_decoder.axmodel").write_bytes(b"short")

    with pytest.raises(BundleError, match=r"incomplete or changed: .*\. Copy the bundle again\.") as refused:
        read_bundle(folder)
    assert "transformer/part_01.axmodel: not there, wanted" in str(refused.value)
    assert "vae_decoder.axmodel: 5 bytes, wanted" in str(refused.value) and str(refused.value).count("wanted") == 2


def test_a_picture_that_schedule_and_models_were_not_made_for_is_refused(whole):
    tokenizer = ClipTokenizer(CLIP)

    with pytest.raises(
        BundleError,
        match=r"scheduler: the picture has lcm, the schedule euler; steps: the picture has 8, the schedule 3; prompt_chunks:"
        r" the picture has 1, transformer\.onnx 2\.",
    ):
        draw(whole, tokenizer, schedule(), replace(PICTURE, scheduler="lcm", steps=8, prompt_chunks=1), **HOW)
    with pytest.raises(
        BundleError, match=r"makes latents of shape \(1, 6, 6, 4\); wanted \(1, 4, 3, 2\), 4 channels and 1/8"
    ):
        draw(whole, tokenizer, schedule(), PICTURE, latents=Latents(channels=4, factor=8), conditioning=CONDITIONING)
    with pytest.raises(BundleError, match="2 text encoders without a conditioning"):
        draw(whole, tokenizer, schedule(), PICTURE, latents=LATENTS)
    with pytest.raises(BundleError, match=r"image to image without a strength; wanted 0 to 1"):
        redraw(np.zeros((24, 16, 3), np.uint8), whole, tokenizer, schedule(), PICTURE, **HOW)


def test_two_models_of_one_name_are_refused(whole):
    with pytest.raises(
        BundleError, match="components text_encoder, text_encoder, transformer, vae_decoder; wanted names that differ"
    ):
        Models((whole.text_encoders[0],) * 2, whole.denoiser, whole.decoder)


def test_the_card_draws_what_the_host_draws(bundle, tmp_path):
    card = copy_of(bundle, tmp_path / "card", emulated=False)
    for path in card.rglob("*.axmodel"):
        model = onnx.load(path)
        model.producer_name = "Pulsar2".ljust(len(EMULATOR))  # so that sizes stay
        onnx.save(model, path)
    shutil.copytree(ROOT / "axbake" / "runtime", card / "axbake" / "runtime")
    (card / "axbake" / "__init__.py").touch()
    shutil.copyfile(ROOT / "resources" / "bundle" / "txt2img.py", card / "txt2img.py")
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests" / "standins"), "OMP_NUM_THREADS": "1"}
    arguments = ["--output", str(tmp_path / "card.png"), "--timings", str(tmp_path / "card.json")]
    image, _ = run(bundle, tmp_path)

    done = subprocess.run(
        [sys.executable, card / "txt2img.py", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
    said = json.loads((tmp_path / "card.json").read_text())
    assert (said["runtime"], said["provider"]) == ("axcl", "AXCLRTExecutionProvider")
    drawn = np.asarray(Image.open(tmp_path / "card.png")).astype(int)
    assert np.abs(drawn - np.asarray(image)).max() <= 1


def test_the_model_card_names_every_file(bundle):
    manifest = json.loads((bundle / "manifest.json").read_text())
    models = {name: {**entry, "toolchain": "pulsar2", "version": "4.2"} for name, entry in manifest["models"].items()}
    template = (ROOT / "resources" / "bundle" / "README.md.j2").read_text()
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)

    text = environment.from_string(template).render(
        **{**manifest, "models": models},
        metadata="",
        program="axbake's own",
        call="",
        checkpoint={"title": "Tiny", "sha256": "0", "source": ""},
    )

    assert "| `text_encoder_2.axmodel` | pulsar2: 4.2 |\n" in text
    parts = ", ".join(f"`transformer/part_{number:02}.axmodel`" for number in range(3))
    assert f"| {parts} | pulsar2: 4.2 |\n" in text


def test_a_chain_of_the_bundle_is_one_model_with_the_whole_ones_numbers(bundle, whole):
    chain = open_models([bundle / file for file in read_bundle(bundle).components["transformer"].files])
    random = np.random.default_rng(3)
    given = {
        name: random.normal(size=shape).astype(np.float32)
        for name, shape in {"sample": LATENT, "encoder_hidden_states": CONTEXT, "row": ROW}.items()
    }

    found, wanted = (model.run(given)["out_sample"] for model in (chain, whole.denoiser))

    assert np.abs(found - wanted).max() <= 1e-6 * np.abs(wanted).max()
    assert (
        "skip" in chain.graphs[0].outputs and "skip" in chain.graphs[2].inputs and "skip" not in chain.graphs[1].outputs
    )
