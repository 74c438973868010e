"""Calibration samples are what the networks saw, evenly chosen, in the forms that the compiler reads."""

import io
import itertools
import json
import logging
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPTokenizer

from axbake.calibration.counting import CalibrationError, Recorded
from axbake.calibration.coverage import choose, shares
from axbake.calibration.denoiser_samples import TakenInputs, load_samples
from axbake.calibration.modules import OUTPUT, ModuleRanges, read_module_ranges
from axbake.calibration.tars import calibrate_encoder, calibrate_text_encoder, stratified
from axbake.calibration.trajectories import watched_denoiser
from axbake.drawing.prompts import CLIP
from axbake.networks.unet import TIME_INPUT
from axbake.npz import npz_bytes
from axbake.runtime.noise import TorchNoise
from axbake.runtime.sampler import initial_latent, load_schedule, sample
from axbake.runtime.session import open_model
from axbake.weights.files import read_description
from tests.builds import COLUMNS
from tests.decoder import all_of, pack_latents
from tests.unit.conftest import SD1, tensors_of
from tests.unit.jobs import calibrate, observe
from tests.unit.jobs import record as record_prompts

ROOT = Path(__file__).parents[2]
PROMPTS = ["slice of pizza", "rocket", "penguin"]
NEGATIVE = "blurry, low quality"
SEED, STEPS, GUIDANCE = 5, 4, 7.0
HEIGHT, WIDTH = COLUMNS["height"], COLUMNS["width"]


def counts(numbers):
    return Counter(numbers).values()


@pytest.mark.parametrize(
    ("count", "prompts", "steps", "branches"),
    [(32, 7, 20, 2), (32, 8, 20, 2), (8, 3, 4, 2), (24, 3, 4, 2), (12, 3, 4, 1), (5, 7, 4, 2), (64, 6, 20, 2), (1, 1, 1, 1)],
)  # fmt: skip
def test_samples_are_different_and_spread_over_prompts_steps_and_branches(count, prompts, steps, branches):
    chosen = stratified(count, prompts=prompts, branches=[branches] * steps)

    assert len(chosen) == len(set(chosen)) == count
    for axis, size in enumerate((prompts, steps, branches)):
        numbers = [which[axis] for which in chosen]
        spread = counts(numbers)
        assert set(numbers) <= set(range(size))
        assert len(spread) == min(size, count), f"axis {axis}"
        assert max(spread) - min(spread) <= 1, f"axis {axis}"
    assert [step for _, step, _ in chosen] == sorted(step for _, step, _ in chosen)


def test_every_number_of_samples_that_there_are_can_be_had_without_a_double():
    for prompts, steps, branches in itertools.product(range(1, 7), range(1, 7), (1, 2)):
        for count in range(1, prompts * steps * branches + 1):
            chosen = stratified(count, prompts=prompts, branches=[branches] * steps)
            assert len(set(chosen)) == count, (count, prompts, steps, branches)


def test_every_prompt_is_seen_early_and_late_and_in_both_branches():
    chosen = stratified(64, prompts=8, branches=[2] * 20)

    for prompt in range(8):
        own = [(step, branch) for p, step, branch in chosen if p == prompt]
        assert min(step for step, _ in own) < 5
        assert max(step for step, _ in own) >= 15
        assert {branch for _, branch in own} == {0, 1}


def test_more_samples_than_there_are_is_an_error_that_counts_them():
    with pytest.raises(CalibrationError) as caught:
        Recorded(prompts=3, steps=8, branches=2).check("samples", 49)

    assert "calibration/samples: 49, but 3 prompts × 8 steps that run the model × 2 branches give 48" in str(
        caught.value
    )


def test_steps_without_guidance_give_samples_of_the_prompt_alone():
    for prompts, guided, alone in itertools.product(range(1, 5), range(4), range(1, 4)):
        recorded, branches = Recorded(prompts, guided + alone, 2, alone), [2] * guided + [1] * alone
        assert recorded.samples == prompts * sum(branches)
        for count in range(1, recorded.samples + 1):
            chosen = stratified(count, prompts=prompts, branches=branches)
            assert len(set(chosen)) == count, (count, prompts, branches)
            assert all(branch < branches[step] for _, step, branch in chosen)
    with pytest.raises(CalibrationError, match=r"2 branches \(without guidance in 3 of these steps\) give 10\."):
        Recorded(2, 4, 2, 3).check("compare_first", 11)


def record(model, directory, *, scheduler, negative_prompt=NEGATIVE, guidance_scale=GUIDANCE):
    """schedule.npz and trajectories.npz, in *directory*."""
    schedule = model.schedule(directory / "schedule.npz", scheduler=scheduler, steps=STEPS)
    how = {"negative_prompt": negative_prompt, "guidance_scale": guidance_scale, "height": HEIGHT, "width": WIDTH}
    record_prompts(model, schedule, directory / "trajectories.npz", prompts=PROMPTS, seed=SEED, **how)
    return directory


@pytest.fixture(scope="module")
def recorded(model, tmp_path_factory):
    return record(model, tmp_path_factory.mktemp("recorded"), scheduler="euler")


@pytest.fixture(scope="session")
def pack_unet(graph_of):
    """A function that packs what was recorded of the UNet; the archive."""

    def pack(recorded, archive, **how):
        calibrate(SD1.denoiser, [graph_of("unet")], recorded, [archive], **{"guidance_scale": GUIDANCE} | how)
        return archive

    return pack


def said_of(archive):
    """What its record says."""
    return json.loads(archive.with_name("unet.json").read_text())


def contents(archive, *, pickled=False):
    """Name and array of each member."""
    with tarfile.open(archive) as tar:
        return {
            member.name: np.load(io.BytesIO(tar.extractfile(member).read()), allow_pickle=pickled)
            for member in tar.getmembers()
        }


def dicts(archive):
    found = contents(archive, pickled=True)
    assert all(array.dtype == object and array.shape == () for array in found.values())
    return {name: array.item() for name, array in found.items()}


def shapes(sample):
    return {name: (array.shape, str(array.dtype)) for name, array in sample.items()}


def wanted_shapes(model, component):
    config = read_description(model.weights[component]).config
    part = model.family.component(component)
    face = part.graphs[0].interface(config, **{name: COLUMNS[name] for name in part.columns})
    return {name: (tensor.shape, tensor.dtype) for name, tensor in face.inputs.items()}


@pytest.mark.parametrize("selection", ["coverage", "stratified", "first"])
def test_unet_samples_have_the_names_shapes_and_types_of_the_graph(pack_unet, model, recorded, selection, tmp_path):
    found = dicts(pack_unet(recorded, tmp_path / "unet.tar", selection=selection))

    assert list(found) == [f"unet_{number:04d}.npy" for number in range(8)]
    assert all(shapes(sample) == wanted_shapes(model, "unet") for sample in found.values())


def fed_to_the_unet(model, directory):
    """What the sampler gives the UNet when it draws the calibration prompts, as bytes."""
    fed = set()
    arrays, schedule = np.load(directory / "trajectories.npz"), load_schedule(directory / "schedule.npz")
    denoiser = model.family.denoiser
    how = {"precision": "float32", "device": "cpu"}
    denoising, _ = watched_denoiser(model.weights["unet"], denoiser.build, denoiser.with_rows, **how)
    denoise = denoising(None)

    def watched(latent, time, texts):
        fed.update((latent.tobytes(), time.row.tobytes(), text.tobytes()) for text in texts)
        return denoise(latent, time, texts)

    for number in range(len(PROMPTS)):
        noise = TorchNoise(SEED + number)
        sample(
            watched,
            schedule,
            noise,
            initial_latent(schedule, noise, (1, 4, HEIGHT // 8, WIDTH // 8)),
            prompt_embeds=arrays["prompt_embeds"][number],
            negative_embeds=arrays["negative_embeds"],
            guidance_scale=GUIDANCE,
        )
    return fed


@pytest.mark.parametrize("scheduler", ["euler", "dpmpp_2m_karras"])
def test_unet_samples_are_what_the_sampler_feeds_it_and_the_empty_prompt_once_a_step(
    pack_unet, model, scheduler, tmp_path
):
    """dpmpp_2m_karras does not run the model in its last step, so no sample may be of it."""
    fed = fed_to_the_unet(model, record(model, tmp_path, scheduler=scheduler))
    steps = STEPS if scheduler == "euler" else STEPS - 1

    found = dicts(pack_unet(tmp_path, tmp_path / "unet.tar", samples=len(fed) + steps)).values()

    assert len(fed) == len(PROMPTS) * 2 * steps
    packed = {tuple(one[name].tobytes() for name in ("sample", TIME_INPUT, "encoder_hidden_states")) for one in found}
    empty = np.load(tmp_path / "trajectories.npz")["empty_embeds"].tobytes()
    assert {one for one in packed if one[2] != empty} == fed
    added = [one for one in packed if one[2] == empty]
    assert {(latent, row) for latent, row, _ in added} < {(latent, row) for latent, row, _ in fed}
    assert len({row for _, row, _ in added}) == len(added) == steps


def test_an_empty_negative_prompt_is_the_empty_prompt_and_nothing_is_added(pack_unet, model, tmp_path):
    record(model, tmp_path, scheduler="euler", negative_prompt="")
    pack_unet(tmp_path, tmp_path / "unet.tar", samples=24)

    assert said_of(tmp_path / "unet.tar")["recorded"] == 24
    with pytest.raises(
        CalibrationError, match=r"3 prompts × 4 steps that run the model × 2 branches give 24\. Give more"
    ):
        pack_unet(tmp_path, tmp_path / "more.tar", samples=25)


def test_without_guidance_no_sample_is_of_the_negative_prompt(pack_unet, recorded, model, tmp_path):
    negative = np.load(recorded / "trajectories.npz")["negative_embeds"]
    record(model, tmp_path, scheduler="euler", guidance_scale=1)

    with_it = dicts(pack_unet(recorded, tmp_path / "with.tar", samples=28))
    without = dicts(pack_unet(tmp_path, tmp_path / "without.tar", samples=16, guidance_scale=1))

    assert sum(np.array_equal(sample["encoder_hidden_states"], negative) for sample in with_it.values()) == 12
    assert not any(np.array_equal(sample["encoder_hidden_states"], negative) for sample in without.values())


@pytest.mark.parametrize(("selection", "most"), [("coverage", 28), ("stratified", 24), ("first", 24)])
def test_more_unet_samples_than_were_recorded_is_an_error_and_no_file(pack_unet, recorded, selection, most, tmp_path):
    with pytest.raises(CalibrationError, match="3 prompts × 4 steps that run the model × 2 branches give 24") as caught:
        pack_unet(recorded, tmp_path / "unet.tar", samples=most + 1, selection=selection)

    assert ("the empty prompt 4" in str(caught.value)) == (selection == "coverage")
    assert list(tmp_path.iterdir()) == []


def test_first_is_what_was_recorded_first(pack_unet, recorded, tmp_path):
    """As published: one prompt's two noisiest steps, in both branches."""
    found = list(dicts(pack_unet(recorded, tmp_path / "unet.tar", samples=4, selection="first")).values())

    arrays, schedule = np.load(recorded / "trajectories.npz"), load_schedule(recorded / "schedule.npz")
    for number, one in enumerate(found):
        step, negative = divmod(number, 2)
        latent = (arrays["latents"][0, step] * schedule.input_scale[step]).astype(np.float32)
        text = arrays["negative_embeds"] if negative else arrays["prompt_embeds"][0]
        assert np.array_equal(one["sample"], latent)
        assert np.array_equal(one["encoder_hidden_states"], text)
        assert np.array_equal(one[TIME_INPUT], schedule.time_embedding[step : step + 1])


@pytest.mark.parametrize("samples", [4, 5, 8, 28])
def test_an_empty_prompt_a_longest_prompt_and_every_step_are_among_the_samples(pack_unet, recorded, samples, tmp_path):
    said = said_of(pack_unet(recorded, tmp_path / "unet.tar", samples=samples))

    assert set(said["required"]) == {"an empty prompt", "a longest prompt", *(f"step {n}" for n in range(1, STEPS + 1))}
    assert all(said["required"].values())
    assert {sample["step"] for sample in said["samples"]} == {1, 2, 3, 4}
    assert "empty prompt" in [sample["text"] for sample in said["samples"]]
    # Three words, the others one; its negative branch would not do.
    assert ("slice of pizza", "prompt") in [(sample["drawing"], sample["text"]) for sample in said["samples"]]


def test_fewer_samples_than_required_are_chosen_by_coverage_alone_and_the_record_says_what_is_missing(
    pack_unet, recorded, tmp_path
):
    said = said_of(pack_unet(recorded, tmp_path / "unet.tar", samples=2))

    assert not all(said["required"].values())
    assert len(said["samples"]) == 2


def test_the_record_counts_what_an_independent_look_at_the_ranges_counts(pack_unet, recorded, tmp_path):
    said = said_of(pack_unet(recorded, tmp_path / "unet.tar", samples=8))

    arrays = np.load(recorded / "trajectories.npz")
    rows = [sample["row"] for sample in said["samples"]]
    low, high = np.minimum(arrays["module_low"], 0), np.maximum(arrays["module_high"], 0)
    for name, covered in said["worst_covered"].items():
        i = list(arrays["module_names"]).index(name)
        span, own = np.ptp([low[:, i].min(), high[:, i].max()]), np.ptp([low[rows, i].min(), high[rows, i].max()])
        assert covered == pytest.approx(own / span, abs=1e-3)
    assert list(said["worst_covered"].values()) == sorted(said["worst_covered"].values())
    assert said["coverage"] == said["coverage_by_samples"][7]
    assert said["coverage_by_samples"] == sorted(said["coverage_by_samples"])
    assert len(said["coverage_by_samples"]) == max(8, said["samples_for"]["100%"])
    assert said["coverage_by_samples"][-1] == 1
    assert said["samples_for"]["99%"] <= said["samples_for"]["100%"]


def test_coverage_covers_more_than_the_others(pack_unet, recorded, tmp_path):
    reached = {
        selection: said_of(pack_unet(recorded, tmp_path / f"{selection}.tar", selection=selection))["coverage"]
        for selection in ("coverage", "stratified", "first")
    }

    assert reached["coverage"] > max(reached["stratified"], reached["first"])


def test_ranges_of_graphs_are_those_of_the_samples_that_they_name(pack_unet, recorded, graph_of, tmp_path):
    """The inputs' own, which need no network to know, and the output's, by ONNX Runtime without the observer."""
    said = said_of(pack_unet(recorded, tmp_path / "unet.tar", samples=8))
    observed = observe([graph_of("unet")], recorded, tmp_path / "unet.json")
    samples = load_samples(recorded / "trajectories.npz", recorded / "schedule.npz", observed.taken)
    network = open_model(graph_of("unet"))

    assert [samples.describe(which) for which in observed.samples] == [
        {name: value for name, value in one.items() if name != "row"} for one in said["samples"]
    ]
    for row, which in enumerate(observed.samples):
        inputs = samples.inputs(which)
        for name, values in (inputs | network.run(inputs)).items():
            column = observed.ranges.names.index(name)
            assert observed.ranges.low[row, column] == pytest.approx(values.min(), rel=1e-4, abs=1e-5)
            assert observed.ranges.high[row, column] == pytest.approx(values.max(), rel=1e-4, abs=1e-5)


def test_ranges_of_modules_are_those_of_the_samples_in_their_order(recorded, graph_of):
    """Inputs and output, by the graph; and what one module inside gives, by the network with a hook of the test's."""
    modules, graph = read_module_ranges(recorded / "trajectories.npz"), open_model(graph_of("unet"))
    taken = TakenInputs(TIME_INPUT, graph.inputs[TIME_INPUT][0])
    samples = load_samples(recorded / "trajectories.npz", recorded / "schedule.npz", taken)
    there = samples.recorded(GUIDANCE)

    assert len(there) == len(modules.low) == len(modules.high) == 28
    assert {"conv_in", "mid_block", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", OUTPUT} < set(
        modules.names
    )
    for row, which in enumerate(there):
        inputs = samples.inputs(which)
        (output,) = graph.run(inputs).values()
        for name, values in (("input", inputs["sample"]), (OUTPUT, output)):
            column = modules.names.index(name)
            assert modules.low[row, column] == pytest.approx(values.min(), rel=1e-3, abs=1e-4)
            assert modules.high[row, column] == pytest.approx(values.max(), rel=1e-3, abs=1e-4)


def test_a_module_that_runs_twice_has_two_names_and_what_has_no_row_of_its_own_counts_for_each():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.twice, self.table = torch.nn.Linear(1, 1, bias=False), torch.nn.Identity()
            self.twice.weight.data.fill_(2)

        def forward(self, given):
            self.table(torch.arange(3.0))
            return {"sample": self.twice(self.twice(given))}

    network = Net()
    ranges = ModuleRanges(network)
    for given in ([[1.0], [-3.0]], [[5.0]]):
        with torch.inference_mode():
            network(torch.tensor(given))
        ranges.end_of_run()

    arrays = ranges.arrays()
    assert arrays["module_names"].tolist() == ["input", "table", "twice", "twice 2", OUTPUT]
    assert arrays["module_low"].tolist() == [[1, 0, 2, 4, 4], [-3, 0, -6, -12, -12], [5, 0, 10, 20, 20]]
    assert arrays["module_high"].tolist() == [[1, 2, 2, 4, 4], [-3, 2, -6, -12, -12], [5, 2, 10, 20, 20]]


def test_the_choice_by_modules_covers_nearly_what_the_choice_by_all_tensors_of_the_graph_does(
    pack_unet, graph_of, recorded, tmp_path
):
    pack_unet(recorded, tmp_path / "all.tar", samples=28)
    rows = [sample["row"] for sample in said_of(tmp_path / "all.tar")["samples"]]
    observed = observe([graph_of("unet")], recorded, tmp_path / "unet.json")
    tensors = shares(observed.ranges, observed.outputs)

    by_modules = [rows.index(one["row"]) for one in said_of(pack_unet(recorded, tmp_path / "unet.tar"))["samples"]]

    best = tensors.curve(choose(tensors, 8)[:8])[-1]
    assert tensors.curve(by_modules)[-1] > best - 0.02
    assert tensors.curve(by_modules)[-1] > tensors.curve([rows.index(row) for row in range(8)])[-1]


def test_calibrating_tells_how_far_it_is(pack_unet, recorded, tmp_path, caplog):
    with caplog.at_level(logging.INFO, "axbake"):
        pack_unet(recorded, tmp_path / "unet.tar", samples=28)

    assert "packing: sample 28 of 28" in caplog.messages


def test_decoder_samples_are_the_latents_they_are_made_of(model, tmp_path):
    latents = np.random.default_rng(0).normal(size=(3, 1, 4, HEIGHT // 8, WIDTH // 8)).astype(np.float32)
    np.save(tmp_path / "latents.npy", latents)
    pack_latents(tmp_path / "latents.npy", tmp_path / "vae_decoder.tar")

    found = dicts(tmp_path / "vae_decoder.tar")
    assert list(found) == [f"vae_decoder_{number:04d}.npy" for number in range(3)]
    assert all(shapes(one) == wanted_shapes(model, "vae_decoder") for one in found.values())
    assert np.array_equal(np.stack([one["x"] for one in found.values()]), latents)


def test_encoder_samples_are_the_pictures_to_the_pixel(tmp_path):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 64, 96, 3), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    calibrate_encoder(
        tmp_path / "pictures.npy", all_of(tmp_path / "pictures.npy"), archive=tmp_path / "vae_encoder.tar"
    )

    with tarfile.open(tmp_path / "vae_encoder.tar") as tar:
        images = [Image.open(io.BytesIO(tar.extractfile(member).read())) for member in tar.getmembers()]
        assert tar.getnames() == [f"vae_encoder_{number:04d}.png" for number in range(3)]

    assert all(image.format == "PNG" and image.mode == "RGB" for image in images)
    assert np.array_equal(np.stack([np.asarray(image) for image in images]), pictures)


def test_text_samples_are_the_chunks_of_the_prompts_each_once_and_embeddings(tmp_path):
    (tmp_path / "embeddings.json").write_text('{"pad_token_id": 49407, "embeddings": {"easynegative": [49408, 49409]}}')
    prompts = [*PROMPTS, "Élan vital, (masterpiece:1.2)", "word " * 90, PROMPTS[0], "a cat BREAK " + PROMPTS[1]]
    calibrate_text_encoder(
        tmp_path / "embeddings.json", component="text_encoder", prompts=prompts, archive=tmp_path / "text_encoder.tar"
    )

    tokenizer = CLIPTokenizer.from_pretrained(CLIP, local_files_only=True)
    found = contents(tmp_path / "text_encoder.tar")
    assert list(found) == [f"text_encoder_{number:04d}.npy" for number in range(9)]
    *ids_of_texts, empty = found.values()
    assert ids_of_texts.pop()[0, :4].tolist() == [49406, 49408, 49409, 49407]
    texts = [*PROMPTS, "Élan vital, masterpiece", "word " * 75, "word " * 15, "a cat", ""]
    for ids, prompt in zip([*ids_of_texts, empty], texts, strict=True):
        wanted = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids
        assert ids.dtype == np.int64
        assert np.array_equal(ids, wanted), prompt


@pytest.fixture
def archives(pack_unet, model, recorded, tmp_path):
    """One archive of each component."""
    np.save(tmp_path / "pictures.npy", np.zeros((2, 64, 64, 3), np.uint8))
    calibrate_encoder(
        tmp_path / "pictures.npy", all_of(tmp_path / "pictures.npy"), archive=tmp_path / "vae_encoder.tar"
    )
    np.save(tmp_path / "latents.npy", np.zeros((2, 1, 4, 8, 8), np.float32))
    pack_latents(tmp_path / "latents.npy", tmp_path / "vae_decoder.tar")
    calibrate_text_encoder(
        model.embeddings, component="text_encoder", prompts=PROMPTS, archive=tmp_path / "text_encoder.tar"
    )
    pack_unet(recorded, tmp_path / "unet.tar")
    return sorted(tmp_path.glob("*.tar"))


def test_archives_hold_files_alone_without_times_and_owners(archives):
    assert len(archives) == 4
    for archive in archives:
        with tarfile.open(archive) as tar:
            for member in tar.getmembers():
                assert member.isreg()
                assert (member.mtime, member.uid, member.gid, member.uname, member.gname) == (0, 0, 0, "", "")


def test_the_same_samples_give_the_same_bytes_in_another_process(recorded, graph_of, archives, tmp_path):
    command = (
        "import sys; from pathlib import Path; from axbake.calibration.tars import calibrate_denoiser\n"
        "graph, tensors, trajectories, schedule, archive, record = map(Path, sys.argv[1:])\n"
        f"how = {{'component': 'unet', 'guidance_scale': {GUIDANCE}, 'samples': 8, 'selection': 'coverage'}}\n"
        "how |= {'archives': [archive], 'record': record}\n"
        "calibrate_denoiser([graph], [tensors], trajectories, schedule, **how)"
    )
    inputs = [graph_of("unet"), tensors_of(graph_of("unet"))]
    inputs += [recorded / f"{name}.npz" for name in ("trajectories", "schedule")]
    (tmp_path / "again").mkdir()
    outputs = [tmp_path / "again" / name for name in ("unet.tar", "unet.json")]
    subprocess.run([sys.executable, "-c", command, *inputs, *outputs], cwd=ROOT, check=True)

    for again in outputs:
        assert again.read_bytes() == (tmp_path / again.name).read_bytes()


def test_sample_dicts_name_no_module_that_only_one_generation_of_numpy_has(archives):
    for archive in archives:
        content = archive.read_bytes()
        assert b"numpy._core" not in content
        assert b"numpy.core" not in content


def test_latents_of_one_step_are_multiplied_as_that_step_wants(pack_unet, recorded, tmp_path):
    """Euler scales its input; a sample taken unscaled would calibrate the UNet for values that it never sees."""
    arrays = dict(np.load(recorded / "trajectories.npz"))
    flat = tmp_path / "flat"
    flat.mkdir()
    arrays["latents"] = np.ones_like(arrays["latents"])
    (flat / "trajectories.npz").write_bytes(npz_bytes(arrays))
    shutil.copy(recorded / "schedule.npz", flat)

    found = dicts(pack_unet(flat, tmp_path / "unet.tar", selection="stratified")).values()

    scales = load_schedule(recorded / "schedule.npz").input_scale
    assert scales[0] < 0.5  # so the test means something
    assert [float(s["sample"].max()) for s in found] == pytest.approx([scales[i] for i in (0, 0, 1, 1, 2, 2, 3, 3)])
