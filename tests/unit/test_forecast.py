"""A job's time follows what it has to do and how fast the machine was; nothing takes no time, and what is unknown is bounded."""

import dataclasses
import json

import pytest
import torch
from safetensors.numpy import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from axbake.cache import Cache, Key
from axbake.families import FAMILIES
from axbake.forecast.history import Build, builds_in
from axbake.forecast.left import Left, run_time
from axbake.forecast.machine import Machine
from axbake.forecast.networks import Network, network_of, typical_network
from axbake.forecast.work import OF_MODEL, OF_NETWORK, Bake, work_of
from axbake.networks.architecture import CONFIGS
from axbake.networks.component import DECODER, DENOISER
from axbake.plan import Planner, dry_run, show
from axbake.weights.networks import wanted_shapes
from tests import tiny
from tests.rules import CONFIG, ROOT, TARGETS, plan_all

ROLES = {one.name: one.role for one in FAMILIES["sd1"].components}
SIZE = {"height": 64, "width": 128, "prompt_chunks": 1}


def bake(scale, **how):
    """A row whose networks have *scale* times as many multiplications and parameters as small ones."""
    networks = {name: Network(role, 1e6 * scale, 1e9 * scale, 100) for name, role in ROLES.items()}
    given = {"steps": 20, "branches": 2, "prompts": 7, "samples": 32, "first": 4, "compared": 2, "texts": 25}
    return Bake(**{"networks": networks, "precision": "float32", "emulated": True, **given, **how})


DEMO, LARGE = bake(1), bake(500)


def seconds(step, component, of=DEMO, builds=()):
    return Machine(builds).seconds(step, component, of)


# What networks take ---------------------------------------------------------------------------------------------------


def inputs_of(networks, name):
    """Inputs of a tiny model's network for a picture of 64 × 128 pixels."""
    latent = torch.zeros(1, 4, 8, 16)
    tokens = torch.zeros(1, 77, networks.text_encoder.config.hidden_size)
    return {
        "text_encoder": (torch.zeros(1, 77, dtype=torch.long),),
        "unet": (latent, 1, tokens),
        "vae_encoder": (torch.zeros(1, 3, 64, 128),),
        "vae_decoder": (latent,),
    }[name]


@pytest.mark.parametrize("variant", ["sd1", "sd2", "bk_sdm_tiny", "sdxs"])
@pytest.mark.parametrize("name", ROLES)
def test_multiplications_counted_from_shapes_are_those_that_torch_counts(variant, name):
    networks = tiny.VARIANTS[variant]()
    network = networks.component(name)
    # It does not count what is within a fused attention.
    with FlopCounterMode(display=False) as counter, torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        network(*inputs_of(networks, name))

    shapes = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    found = network_of(shapes, ROLES[name], **SIZE)

    assert found.macs == pytest.approx(counter.get_total_flops() / 2, rel=0.05)
    assert found.parameters == sum(tensor.numel() for tensor in network.state_dict().values())


@pytest.mark.parametrize("component", FAMILIES["sd1"].components, ids=lambda one: one.name)
def test_what_cannot_be_read_yet_is_taken_for_stable_diffusion_1_5(component):
    config = json.loads((CONFIGS / component.files.folder / "config.json").read_text())
    shapes = wanted_shapes(component.build, config)
    size = {"height": 512, "width": 512}

    typical = typical_network(component.role, **size)
    exact = network_of(shapes, component.role, **size, prompt_chunks=1)

    for name in ("parameters", "macs", "tensors"):
        assert getattr(typical, name) == pytest.approx(getattr(exact, name), rel=0.05), name


def test_four_times_the_pixels_are_about_four_times_the_multiplications_of_an_autoencoder():
    vae = tiny.VARIANTS["sd1"]().component("vae_decoder")
    shapes = {key: tuple(tensor.shape) for key, tensor in vae.state_dict().items()}
    one = network_of(shapes, DECODER, height=64, width=64, prompt_chunks=1)
    four = network_of(shapes, DECODER, height=128, width=128, prompt_chunks=1)

    assert 4 <= four.macs / one.macs < 4.2


# What steps take ------------------------------------------------------------------------------------------------------


def test_every_step_of_the_workflow_takes_some_time(tmp_path):
    steps = {one for steps in plan_all(tmp_path / "project").steps.values() for one in map(step_of, steps)}

    assert {name for name, _ in steps} <= {*OF_MODEL, *OF_NETWORK}
    for name, component in steps:
        assert seconds(name, component) > 0


def step_of(step):
    return step.function.rpartition(".")[2], step.component


def test_a_step_that_only_computes_takes_as_many_times_as_long_as_it_has_multiplications():
    four = bake(2000)

    for step, component in (("encode_pictures", None), ("compile_model", "unet"), ("record_trajectories", None)):
        assert seconds(step, component, four) / seconds(step, component, LARGE) == pytest.approx(4, rel=0.2), step


def test_runs_count():
    one, twice = bake(500), bake(500, steps=40)

    for step, component in (("draw_reference", None), ("simulate", None), ("record_trajectories", None)):
        assert seconds(step, component, twice) / seconds(step, component, one) == pytest.approx(2, rel=0.2), step


def test_a_graph_of_several_takes_its_share_and_samples_run_through_all():
    networks = LARGE.networks | {"unet": dataclasses.replace(LARGE.networks["unet"], graphs=3)}
    several = bake(500, networks=networks)
    fixed = work_of("compile_model", "unet", LARGE)["fixed"]

    whole, third = (seconds("compile_model", *of) - fixed for of in (("unet", LARGE), ("unet/mid", several)))
    assert third == pytest.approx(whole / 3)
    for given in (several, LARGE):
        assert work_of("observe_denoiser", "unet", given)["onnx"] == given.samples * networks["unet"].macs


def test_samples_are_packed_without_a_run_of_one_graph_and_with_runs_of_all_but_the_last_of_several():
    unet = dataclasses.replace(LARGE.networks["unet"], graphs=3)
    several = bake(500, networks=LARGE.networks | {"unet": unet})

    assert "onnx" not in work_of("calibrate_denoiser", "unet", LARGE)
    assert work_of("calibrate_denoiser", "unet", several)["onnx"] == pytest.approx(several.samples * unet.macs * 2 / 3)


def test_the_real_compiler_takes_what_is_published_of_it():
    unet = {"unet": Network(DENOISER, 860e6, 221.9e9, 282)}
    given = bake(1, networks=unet, emulated=False)

    assert seconds("compile_model", "unet", given) == pytest.approx(68 * 60)


def test_large_networks_gain_from_threads():
    work = [work_of("record_trajectories", None, dataclasses.replace(LARGE, threads=n)) for n in (2, 4)]

    assert work[1]["torch"] == work[0]["torch"] / 2
    assert work[1]["bytes"] == work[0]["bytes"]


# What the machine did before ------------------------------------------------------------------------------------------


def built(step, component, seconds, of=DEMO):
    return Build(step, component, work_of(step, component, of), seconds)


def test_a_machine_that_took_twice_as_long_for_all_it_built_takes_so_for_what_it_never_built():
    steps = [("export_onnx", "unet"), ("simulate", None), ("calibrate_denoiser", "unet")]
    builds = [built(step, component, 2 * seconds(step, component)) for step, component in steps]

    assert Machine(builds).factor == pytest.approx(2, rel=0.05)
    assert seconds("draw_reference", None, builds=builds) / seconds("draw_reference", None) == pytest.approx(2, rel=0.1)
    assert Machine(builds).start == pytest.approx(2 * Machine([]).start, rel=0.05)


def test_the_same_step_of_about_the_same_size_says_more_than_the_others():
    others = [built("simulate", None, 10 * seconds("simulate", None))] * 9
    builds = [*others, built("export_onnx", "unet", 40.0)]

    assert seconds("export_onnx", "unet", builds=builds) == pytest.approx(40, rel=0.02)


def test_a_small_models_step_says_of_a_large_ones_only_how_fast_the_machine_is():
    """A full-size row after the demo: the same step took seconds, and takes minutes."""
    demo = [built(step, None, seconds(step, None)) for step in ("record_trajectories", "draw_reference", "simulate")]

    assert seconds("record_trajectories", None, LARGE, demo) == pytest.approx(
        seconds("record_trajectories", None, LARGE), rel=0.05
    )
    assert (
        seconds("record_trajectories", None, LARGE, demo) > 100 * seconds("record_trajectories", None, DEMO, demo) / 4
    )


def test_compiles_by_pulsar2_tell_of_pulsar2_alone():
    unet = {"unet": Network(DENOISER, 860e6, 221.9e9, 282)}
    real, emulated = (bake(1, networks=unet, emulated=emulated) for emulated in (False, True))
    builds = [built("compile_model", "unet", 8000.0, real)]

    assert seconds("compile_model", "unet", real, builds) == pytest.approx(8000, rel=0.01)
    assert seconds("compile_model", "unet", emulated, builds) == seconds("compile_model", "unet", emulated)


def test_one_build_that_hung_is_no_measure():
    hung = [built("simulate", None, 100_000.0)]

    assert Machine(hung).factor == 5


# What a build cache tells of it ---------------------------------------------------------------------------------------


def store(cache, place, step, component, *, made, settings=None, inputs=None):
    """Build *made*, a function of a path, through *cache*; its content's SHA-256."""
    name = f"{component}.safetensors" if step == "import_component" else component
    key = Key(step, component, {"settings": settings or {}}, inputs or {}, {name: name})
    cache.fetch_or_build(key, {name: place / step / name}, lambda files: made(files[name]))
    return cache.find(key).outputs[name].sha256


@pytest.fixture
def baked(tmp_path):
    """A cache in which a VAE's decoder was imported and exported at 64 × 128; shapes of its weights."""
    cache = Cache(tmp_path / "cache")
    network = tiny.VARIANTS["sd1"]().component("vae_decoder")
    tensors = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    of = {"cache": cache, "place": tmp_path, "component": "vae_decoder"}
    weights = store(step="import_component", made=lambda path: save_file(tensors, path), **of)
    columns = {"height": 64, "width": 128, "program": "axera"}
    exported = {"settings": {"columns": columns}, "inputs": {"weights/vae_decoder.safetensors": weights}}
    graph = store(step="export_onnx", made=lambda path: path.write_bytes(b"graph"), **exported, **of)
    inputs = {"onnx/vae_decoder.onnx": graph}
    store(step="compile_model", made=lambda path: path.write_bytes(b"model"), inputs=inputs, **of)
    return cache, {name: tensor.shape for name, tensor in tensors.items()}


def test_what_a_build_had_to_do_follows_from_the_builds_before_it(baked):
    cache, shapes = baked
    found = {build.step: build for build in builds_in(cache, cache.entries(), cores=2)}

    network = network_of(shapes, DECODER, **SIZE)
    given = bake(1, networks={"vae_decoder": network})
    assert found["export_onnx"].work == pytest.approx(work_of("export_onnx", "vae_decoder", given))
    assert found["compile_model"].work == pytest.approx(work_of("compile_model", "vae_decoder", given))


def test_builds_whose_weights_are_gone_or_whose_settings_mean_nothing_are_passed_over(baked, tmp_path):
    cache, _ = baked
    for entry in list(cache.entries("import_component", "vae_decoder")):
        for blob in entry.outputs.values():
            cache.blobs.path(blob).unlink()
    for number, height in enumerate(("64", -1, True, None, [], 1e300, {"a": 1})):
        settings = {"columns": {"height": height, "width": 64}, "picture": number, "compiler": 3}
        of = {"component": "vae_decoder", "settings": settings}
        store(cache, tmp_path / str(number), "export_onnx", made=lambda path: path.write_bytes(b"x"), **of)

    assert list(builds_in(cache, cache.entries(), cores=2)) == []


# How long a run takes -------------------------------------------------------------------------------------------------


def test_what_is_left_is_what_neither_ended_nor_waits_for_what_failed():
    seconds = {1: 10.0, 2: 20.0, 3: 40.0, 4: 80.0, 5: 80.0}
    left = Left(seconds, dict.fromkeys(seconds, 0.5), {2: [1], 3: [2], 4: []})
    assert left.seconds == 115  # by cores

    left.begin(1)
    left.fail(1)
    assert left.seconds == 80
    left.fail(1)  # its last attempt
    assert left.seconds == 80
    left.begin(1)
    assert left.seconds == 115
    left.end(4)
    left.end(1)
    assert left.seconds == 80  # the longest job
    left.end(5)
    assert left.seconds == 60  # one after the other
    left.end(2)
    left.end(3)
    assert left.seconds == 0


def test_a_run_takes_as_long_as_its_longest_chain_or_all_its_cores_work():
    seconds = {1: 10.0, 2: 10.0, 3: 10.0, 4: 10.0}

    assert run_time(seconds, dict.fromkeys(seconds, 0.5), {}) == 20
    assert run_time(seconds, dict.fromkeys(seconds, 0.5), {1: [2], 2: [3], 3: [4]}) == 40
    assert run_time(seconds, dict.fromkeys(seconds, 1.0), {1: [2, 9]}) == 40  # 9 is up to date
    assert run_time({}, {}, {}) == 0
    assert (
        run_time(dict.fromkeys(range(5000), 1.0), dict.fromkeys(range(5000), 0.0), {n: [n + 1] for n in range(5000)})
        == 5000
    )


def test_every_job_of_a_plan_has_a_time(tmp_path, monkeypatch):
    """Of rows that are refused, or still to be fetched, and of boards too."""
    plan_all(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    command = ["--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "--", *TARGETS]

    planner = Planner(dry_run(command), Cache(tmp_path / "empty"))

    assert {verdict.kind for verdict in planner.verdicts.values()} == {"fetch", "build", "unknown", "run"}
    assert all(0 < verdict.seconds <= verdict.most for verdict in planner.verdicts.values())


def test_a_plan_counts_what_is_unknown_in_its_upper_bound(tmp_path, monkeypatch):
    plan_all(tmp_path / "project")
    (tmp_path / "project" / "config" / "config.yaml").write_text(CONFIG.replace("native", "emulator"))
    monkeypatch.chdir(tmp_path / "project")
    command = ["--snakefile", str(ROOT / "Snakefile"), "--cores", "2", "--", "results/demo/report.html"]

    planner = Planner(dry_run(command), Cache(tmp_path / "empty"))

    verdicts = planner.verdicts.values()
    assert {verdict.kind for verdict in verdicts} == {"build", "unknown", "run"}
    assert all(verdict.seconds > 0 for verdict in verdicts)
    assert all(
        (verdict.seconds < verdict.most) == (verdict.kind == "unknown")
        for verdict in verdicts
        if verdict.kind != "build"
    )
    least, most = planner.total
    assert 10 < least < most / 2
    assert 60 < most < 150  # the demo, from an empty cache, where the costs were measured
    assert "On 2 cores between" in show(planner).splitlines()[-1]
