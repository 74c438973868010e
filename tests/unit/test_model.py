"""A model of the table: its family from its header, and what its jobs are given of its row, its config and its family."""

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from axbake import model as module
from axbake import sources
from axbake.checkpoints.refusals import UnknownFamily
from axbake.emulator.config import Pulsar2ConfigError
from axbake.families import FAMILIES
from axbake.model import MissingFamily, Model, NoComponent, SeveralGraphs, WrongFamily, family_of, parameters_of
from axbake.networks.component import DECODER, DENOISER, ENCODER, TEXT
from axbake.quality.recipe import RecipeError
from axbake.table import check_config, read_row_config
from tests import loras, tiny
from tests.unit.conftest import SCHEMAS, SD1, halves, row_of
from tests.unit.test_sources import FORMS

PAGE = "https://civitai.com/models/47274?modelVersionId=102222"
OF_CONFIG = {"schema": SCHEMAS / "config.schema.yaml", "components": {one.name: one.role for one in SD1.components}}


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def networks():
    return {name: build() for name, build in tiny.FAMILIES.items()}


def config_of(**entries):
    return check_config(entries, source="config.yaml", **OF_CONFIG)


def model_of(*, project=None, **cells):
    """The model of a row, with the entries of its own file over those of *project*, as the workflow has it."""
    row, project = row_of(**cells), config_of(**(project or {}))
    return Model(row, read_row_config(Path(row["config"]), project, **OF_CONFIG) if row["config"] else project)


@pytest.fixture
def model():
    """Of Stable Diffusion 1.x, for what needs no file."""
    return lambda **cells: model_of(checkpoint=PAGE, sha256="0" * 64, **({"family": "sd1"} | cells))


CONTAINERS = FORMS | {
    "safetensors": lambda networks: tiny.save(networks, Path("tiny.safetensors"), extra=tiny.leftovers()),
    "diffusers' names": lambda networks: tiny.save(networks, Path("tiny.safetensors"), layout="diffusers"),
    "shards": lambda networks: tiny.save_folder(networks, Path("tiny"), variant="fp16", shard="1MB"),
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_family_of_a_local_checkpoint_is_read_from_its_header(family, container, networks):
    path = CONTAINERS[container](networks[family])

    assert model_of(checkpoint=str(path)).family is FAMILIES[family]
    assert model_of(checkpoint=str(path), family=family).family is FAMILIES[family]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_moving_average_tells_the_family_where_there_is_nothing_else(family, networks):
    save_file(tiny.averaged(tiny.single_file_tensors(networks[family])), "tiny.safetensors")

    assert model_of().family is FAMILIES[family]


@pytest.mark.parametrize("container", ["safetensors", "a pickle", "a recipe"])
def test_the_family_is_remembered_while_the_file_is_the_same(container, networks, monkeypatch):
    path = CONTAINERS[container](networks["sd2"])
    assert family_of(path).name == "sd2"
    opened = []
    monkeypatch.setattr(sources, "open_unconverted", lambda path: opened.append(path))

    assert model_of(checkpoint=str(path)).family.name == "sd2"
    assert opened == []


def test_another_file_in_its_place_is_read_anew(networks):
    tiny.save(networks["sd2"], Path("tiny.safetensors"))
    assert model_of().family.name == "sd2"
    tiny.save(networks["sd1"], Path("tiny.safetensors"))

    assert model_of().family.name == "sd1"


def test_what_told_families_apart_before_a_change_of_families_is_not_believed(networks, monkeypatch):
    """A note of an older version must not hide that a new family fits, or that an old one is called otherwise."""
    path = tiny.save(networks["sd1"], Path("tiny.safetensors"))
    family_of(path)
    (note,) = (Path(".axbake") / "digests").iterdir()
    other = dataclasses.replace(FAMILIES["sd1"], name="other")
    monkeypatch.setattr(module, "FAMILIES", {"other": other, "sd2": FAMILIES["sd2"]})
    monkeypatch.setattr(module, "_functions", lambda: ["axbake.families.sd2.fits"])

    assert family_of(path) is other
    assert note.exists() and len(list(note.parent.iterdir())) == 2


def test_a_file_of_no_family_is_called_by_its_name():
    save_file({"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": torch.zeros(4, 4)}, "tiny.safetensors")

    with pytest.raises(UnknownFamily, match=r"tiny\.safetensors: this is a LoRA\."):
        _ = model_of().family


@pytest.mark.parametrize("family", FAMILIES)
def test_the_column_family_tells_it_of_what_is_to_be_fetched(family):
    found = model_of(checkpoint=PAGE, sha256="0" * 64, family=family)

    assert found.family.name == family and found.family.names == FAMILIES[family].names
    assert not Path(".axbake").exists()  # nothing was looked at


def test_without_that_column_what_is_to_be_fetched_is_an_error_that_says_how_to_fill_it_in():
    with pytest.raises(MissingFamily) as caught:
        _ = model_of(checkpoint=PAGE, sha256="0" * 64).family

    said = str(caught.value)
    known = ", ".join(FAMILIES)
    assert said.startswith(
        f"tiny: column family: empty, wanted one of {known}, because the checkpoint is not downloaded yet"
    )
    assert f"`axbake add {PAGE}`" in said


def test_a_checkpoint_of_another_family_than_the_column_says_is_an_error(networks):
    tiny.save(networks["sd2"], Path("tiny.safetensors"))

    with pytest.raises(WrongFamily) as caught:
        _ = model_of(family="sd1").family

    assert str(caught.value) == (
        "tiny: column family: sd1, but tiny.safetensors is of sd2 (Stable Diffusion 2.x). Correct the column, or leave it"
        " empty."
    )


def test_entries_by_component_fall_back_to_the_role(model):
    found = model(project={"precision": {"text": "U8", "denoiser": "S16", "unet": "U16", "vae_encoder": "U8"}})

    wanted = {"text_encoder": "U8", "unet": "U16", "vae_encoder": "U8", "vae_decoder": "U16"}
    assert found.entries_of("precision") == wanted
    assert {one.name: found.entry_of("precision", one) for one in found.family.components} == wanted
    assert found.entry_name("precision", found.component("unet")) == "unet"
    assert found.entry_name("precision", found.component("text_encoder")) == TEXT
    assert found.entries_of("parity/min_psnr") == dict.fromkeys(SD1.names, 60)
    assert found.entry("compiled/samples") == 2


def test_a_rows_own_entries_go_over_the_projects(model):
    Path("own.yaml").write_text("precision: {unet: U8}\nparity: {min_psnr: {decoder: 45}}\n", encoding="utf-8")
    project = {"precision": {"denoiser": "S16", "text": "S16"}}
    own, other = (model(config=path, project=project) for path in ("own.yaml", ""))

    assert own.entries_of("precision") == dict.fromkeys(halves(SD1), "U16") | {"text_encoder": "S16", "unet": "U8"}
    assert own.entries_of("parity/min_psnr") == dict.fromkeys(SD1.names, 60) | {"vae_decoder": 45}
    assert other.entries_of("precision") == dict.fromkeys(halves(SD1), "U16") | {"text_encoder": "S16", "unet": "S16"}


def test_a_rows_entry_of_a_role_counts_for_the_component_that_the_project_names(model):
    Path("own.yaml").write_text(
        "precision: {denoiser: U8}\npulsar2: {denoiser: {compiler: {check: 3}}}\n", encoding="utf-8"
    )
    project = {"precision": {"unet": "S16"}, "pulsar2": {"unet": {"compiler": {"check": 2, "npu_perf": True}}}}
    own = model(config="own.yaml", project=project)

    assert own.entries_of("precision")["unet"] == "U8"
    assert own.entry_of("pulsar2", own.component("unet"))["compiler"] == {"check": 3, "npu_perf": True}

    Path("own.yaml").write_text("precision: {denoiser: U8, unet: U16}\n", encoding="utf-8")
    assert model(config="own.yaml", project=project).entries_of("precision")["unet"] == "U16"


def test_pulsar2_has_what_axbake_sets_and_over_it_the_users_fields(model):
    Path("base.json").write_text(
        json.dumps({"compiler": {"check": 2, "check_mode": "CheckPerLayer"}, "npu_mode": "NPU1"}), encoding="utf-8"
    )
    fields = {"unet": {"base": "base.json", "compiler": {"check": 3}}, "text": {"quant": {"calibration_method": "KL"}}}
    found = model(project={"pulsar2": fields, "precision": {"unet": "S16"}, "npu_mode": "NPU2"}, program="euler")
    unet, text = found.component("unet"), found.component("text_encoder")

    whole = found.pulsar2_config(unet, 0)
    assert whole["compiler"] == {"check": 3, "check_mode": "CheckPerLayer"}
    assert (whole["npu_mode"], whole["target_hardware"], whole["model_type"]) == ("NPU1", "AX650", "ONNX")
    (layer,) = whole["quant"]["layer_configs"]
    assert layer["data_type"] == "S16"
    (calibration,) = whole["quant"]["input_configs"]
    assert calibration["calibration_dataset"] == "unet.tar"
    assert whole["input_processors"] == [{"tensor_name": "t", "src_dtype": "S32"}]  # which the column program decides
    assert found.pulsar2_config(text, 0)["quant"]["calibration_method"] == "KL"
    assert found.pulsar2_config(text, 0)["npu_mode"] == "NPU2"
    for half in found.family.autoencoder:
        assert found.pulsar2_config(half, 0)["quant"]["calibration_method"] == "MinMax"


@pytest.mark.parametrize("name", ["unet", "denoiser"])
def test_a_field_that_cannot_be_used_is_named_where_it_stands(name, model):
    found = model(project={"pulsar2": {name: {"compiler": {"chekc": 3}, "output_name": "x.axmodel"}}})

    with pytest.raises(Pulsar2ConfigError) as caught:
        found.pulsar2_config(found.component("unet"), 0)

    faults = str(caught.value).splitlines()
    assert len(faults) == 2
    assert all(fault.startswith(f"pulsar2/{name}") for fault in faults)
    assert "chekc" in faults[0]
    assert "output_name: axbake sets it: unet.axmodel" in faults[1]


def test_a_model_has_a_graph_a_component_where_each_has_one(model):
    found = model()

    assert found.graphs == list(SD1.names)
    assert found.roles == {"text_encoder": TEXT, "unet": DENOISER, "vae_encoder": ENCODER, "vae_decoder": DECODER}
    assert found.builds == {component.name: component.build for component in SD1.components}
    assert found.of_address("unet") == (SD1.denoiser, 0)
    assert [(part.name, part.role, part.graphs) for part in found.drawn.parts] == [
        (component.name, component.role, 1) for component in SD1.components
    ]
    assert found.drawn.conditioning == SD1.conditioning


@pytest.fixture
def of_several(monkeypatch, model):
    """A model of a made-up family, whose UNet has three graphs, and whose text encoders are two."""
    unet, text = SD1.denoiser, SD1.component("text_encoder")
    graphs = tuple(dataclasses.replace(unet.graphs[0], name=name) for name in ("down", "mid", "up"))
    components = (
        text,
        dataclasses.replace(text, name="text_encoder_2"),
        dataclasses.replace(unet, graphs=graphs),
        *SD1.autoencoder,
    )
    conditioning = dataclasses.replace(SD1.conditioning, encoders=("text_encoder", "text_encoder_2"))
    made_up = dataclasses.replace(
        SD1, name="made_up", title="Made up", components=components, conditioning=conditioning
    )
    monkeypatch.setattr(module, "FAMILIES", FAMILIES | {"made_up": made_up})
    found = model()
    found.row["family"] = "made_up"
    return found


def test_graphs_of_several_have_addresses_in_a_directory_of_the_component(of_several):
    wanted = ["text_encoder", "text_encoder_2", "unet/down", "unet/mid", "unet/up", "vae_encoder", "vae_decoder"]

    assert of_several.graphs == wanted
    assert list(of_several.roles.values()) == [TEXT, TEXT, DENOISER, DENOISER, DENOISER, ENCODER, DECODER]
    unet = of_several.component("unet")
    assert [of_several.of_address(f"unet/{name}") for name in ("down", "mid", "up")] == [(unet, n) for n in range(3)]
    files = [Path(graph) for graph in wanted]
    opened = of_several.drawn.files(files)
    assert opened["unet"] == [Path("unet/down"), Path("unet/mid"), Path("unet/up")]
    assert opened["text_encoder_2"] == [Path("text_encoder_2")]
    assert [of_several.build(unet, number).name for number in range(3)] == ["down", "mid", "up"]
    configs = [of_several.pulsar2_config(unet, number) for number in range(3)]
    assert [config["quant"]["input_configs"][0]["calibration_dataset"] for config in configs] == [
        "down.tar",
        "mid.tar",
        "up.tar",
    ]
    assert of_several.entries_of("precision") == dict.fromkeys(of_several.family.names, "U16")


def test_a_component_of_several_graphs_asked_for_as_one_model_is_an_error_that_names_them(of_several):
    with pytest.raises(SeveralGraphs) as caught:
        of_several.of_address("unet")

    assert str(caught.value) == (
        "results/tiny/unet.axmodel: the unet of Made up has 3 graphs; ask for results/tiny/unet/down.axmodel,"
        " results/tiny/unet/mid.axmodel, results/tiny/unet/up.axmodel."
    )


def test_a_graph_that_a_component_does_not_have_is_an_error_that_names_what_there_is(of_several, model):
    with pytest.raises(SeveralGraphs, match=r"unet/left\.axmodel: the unet of Made up has 3 graphs; ask for results"):
        of_several.of_address("unet/left")
    with pytest.raises(SeveralGraphs, match=r"has 1 graph; ask for results/tiny/vae_encoder\.axmodel\."):
        of_several.of_address("vae_encoder/down")
    with pytest.raises(NoComponent) as caught:
        of_several.of_address("text_encoder_3")
    wanted = "text_encoder, text_encoder_2, unet, vae_encoder, vae_decoder"
    assert str(caught.value) == f"tiny: no component text_encoder_3; Made up has {wanted}."


def test_a_picture_is_drawn_as_the_row_says(model):
    cells = {"steps": "7", "guidance_scale": "3.5", "seed": "5", "scheduler": "ddim", "negative_prompt": "blurry"}
    found = model(**cells, prompt_chunks="2", clip_skip="2", width="96")

    wanted = {"model": "tiny", "prompt": "a rocket", "negative_prompt": "blurry", "height": 64, "width": 96}
    wanted |= {"scheduler": "ddim", "steps": 7, "guidance_scale": 3.5, "seed": 5, "prompt_chunks": 2, "clip_skip": 2}
    assert dataclasses.asdict(found.picture) == wanted | {
        "strength": None,
        "sizes": (),
        "image_guidance_scale": None,
        "cfg_trunc_ratio": None,
    }


def test_a_component_is_given_the_columns_that_its_graphs_depend_on(model):
    found = model(width="96", program="euler", prompt_chunks="2")

    wanted = {"height": 64, "width": 96, "prompt_chunks": 2, "program": "euler"}
    assert found.columns(found.component("unet")) == wanted
    assert found.columns(found.component("text_encoder")) == {}
    assert found.columns(found.component("vae_encoder")) == {"height": 64, "width": 96}
    assert found.build(found.component("unet"), 0).inputs == {
        "sample": "float32",
        "t": "int32",
        "encoder_hidden_states": "float32",
    }


def test_loras_go_to_the_components_that_they_change(networks, model):
    pairs = loras.pairs(networks["sd1"])
    unet_alone = {place: pair for place, pair in pairs.items() if place[0] == "unet"}
    loras.save(loras.kohya(pairs), Path("both.safetensors"))
    loras.save(loras.kohya(unet_alone), Path("unet.safetensors"))
    loras.save(loras.peft(pairs), Path("silent.safetensors"))
    found = model(loras="both.safetensors:0.5:0.8, unet.safetensors:0.3, silent.safetensors:0:1")
    strengths = {
        component.name: [(Path(lora.path).stem, lora.strength(component.role)) for lora in found.loras_of(component)]
        for component in found.family.components
    }

    assert strengths == {
        "text_encoder": [("both", 0.5)],
        "unet": [("both", 0.8), ("unet", 0.3), ("silent", 1)],
        "vae_encoder": [],
        "vae_decoder": [],
    }
    assert found.strengths_of(found.component("unet")) == [0.8, 0.3, 1]
    assert len(found.loras_digest(found.component("unet")).split()) == 3
    assert found.loras_digest(found.component("text_encoder")) == found.loras_digest(found.component("unet")).split()[0]
    assert found.loras_digest(found.component("vae_encoder")) == ""
    assert found.lora_strengths[1] == {"name": "unet", "text_encoder": 0.3, "unet": 0.3}


def test_advice_names_marks_without_effect_and_what_an_lcm_lora_wants(networks, model):
    loras.save(loras.kohya(loras.pairs(networks["sd1"])), Path("lcm-lora.safetensors"))
    found = model(loras="lcm-lora.safetensors", prompt="a rocket <lora:grain:1>")

    mark, advice = found.advice
    assert mark.startswith("<lora:grain:1> in column prompt is not applied")
    assert advice.startswith("lcm-lora.safetensors is an LCM-LoRA, and the row has scheduler dpmpp_2m_karras")


def test_every_kind_of_source_tells_its_first_fault(networks):
    tiny.save(networks["sd2"], Path("tiny.safetensors"))
    Path("vae.safetensors").write_text("<html>", encoding="utf-8")
    assert model_of().fault() == ""

    found = model_of(family="sd1", vae="vae.safetensors", embeddings="gone.pt", loras="a.safetensors, b.safetensors")

    kinds = [line.partition(":")[0] for line in found.fault().splitlines()]
    assert kinds == ["WrongFamily", "UnreadableCheckpoint", "MissingEmbedding", "MissingLora"]
    assert "a.safetensors, b.safetensors: not there" in found.fault()


def test_a_lora_that_is_none_is_told_with_the_faults(networks):
    tiny.save(networks["sd1"], Path("tiny.safetensors"))
    save_file({"conv.weight": networks["sd1"].unet.conv_in.weight}, "none.safetensors")

    (fault,) = model_of(loras="none.safetensors").fault().splitlines()

    assert fault.startswith("LoraError: tiny: none.safetensors: not a LoRA: conv.weight")


def test_a_recipe_that_cannot_be_used_is_told_with_the_faults():
    Path("tiny.yaml").write_text(yaml.safe_dump({"checkpoints": {}, "steps": []}), encoding="utf-8")

    assert (
        model_of(checkpoint="tiny.yaml").fault().startswith("RecipeError: tiny: tiny.yaml: this recipe cannot be used:")
    )


def test_a_small_model_is_told_by_its_parameters(networks, monkeypatch):
    tiny.save(networks["sd1"], Path("tiny.safetensors"))
    count = sum(math.prod(tensor.shape) for tensor in load_file("tiny.safetensors").values())

    assert parameters_of(Path("tiny.safetensors")) == count
    assert model_of(checkpoint="tiny.safetensors").is_small
    assert model_of(checkpoint="tiny.safetensors").parameters == count
    monkeypatch.setattr("axbake.model.SMALL", count)
    assert not model_of(checkpoint="tiny.safetensors").is_small


def test_a_model_whose_size_nobody_knows_yet_is_not_small(model):
    Path("broken.safetensors").write_bytes(b"not a checkpoint")

    for unknown in (model(), model_of(checkpoint="broken.safetensors")):  # the first is to be fetched
        assert unknown.parameters is None
        assert not unknown.is_small


@pytest.mark.parametrize(
    ("precision", "cells", "brought"),
    [
        ({"denoiser": "recipe"}, {}, ""),
        ({"denoiser": "U8"}, {"quality": "1.5"}, ""),
        ({"unet": "config/mine.yaml"}, {"quality": "1.5"}, "config/mine.yaml"),
    ],
)
def test_a_denoiser_with_a_recipe_departs_from_16_bits(model, precision, cells, brought):
    found = model(project={"precision": precision}, **cells)
    unet = found.component("unet")

    assert found.has_recipe(unet) and not found.has_recipe(found.component("vae_decoder"))
    assert found.recipe_file(unet) == brought and found.quality == float(cells.get("quality", 1))
    assert found.pulsar2_config(unet, 0) == found.wide_config(unet, 0)
    assert found.pulsar2_config(unet, 0)["quant"]["layer_configs"][0]["data_type"] == "U16"


def test_without_a_recipe_the_precision_is_what_config_says(model):
    found = model(project={"precision": {"denoiser": "U8"}})
    unet = found.component("unet")

    assert not found.has_recipe(unet) and found.recipe_file(unet) == ""
    assert found.pulsar2_config(unet, 0)["quant"]["layer_configs"][0]["data_type"] == "U8"
    assert found.wide_config(unet, 0)["quant"]["layer_configs"][0]["data_type"] == "U16"


def test_only_a_denoiser_has_a_recipe(model):
    with pytest.raises(
        RecipeError, match="precision/vae_decoder: recipe, but only denoisers have recipes; wanted U8, U16"
    ):
        model(project={"precision": {"vae_decoder": "recipe"}}).check_recipes()


def test_a_recipe_that_is_not_there_is_told_with_the_table(model):
    with pytest.raises(RecipeError, match=r"tiny: mine\.yaml: no such file; config/precision names it as a recipe"):
        model(project={"precision": {"unet": "mine.yaml"}}).check_recipes()
    Path("mine.yaml").write_text("layers: {unet: {U8: [a]}}", encoding="utf-8")
    model(project={"precision": {"unet": "mine.yaml"}}).check_recipes()
