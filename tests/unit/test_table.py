"""Config and table are refused before anything starts, every fault at once, with its place, its value and what to do."""

import hashlib
from pathlib import Path

import pytest
import yaml

from axbake.families import FAMILIES
from axbake.loras.rows import Lora
from axbake.networks.component import ROLES
from axbake.table import (
    MissingCheckpoint,
    MissingEmbedding,
    MissingLora,
    MissingVae,
    ProjectConfigError,
    TableError,
    WrongChecksum,
    check_config,
    checkpoint_sha256,
    embeddings_sha256,
    loras_sha256,
    read_config,
    read_models,
    read_row_config,
    vae_sha256,
)

ROOT = Path(__file__).parents[2]
SCHEMAS = ROOT / "workflow" / "schemas"
OF_CONFIG = {
    "schema": SCHEMAS / "config.schema.yaml",
    "components": {one.name: one.role for one in FAMILIES["sd1"].components},
}
ROW = {
    "model": "tiny",
    "checkpoint": "tiny.safetensors",
    "sha256": "",
    "family": "sd1",
    "config": "row.yaml",
    "vae": "vae.safetensors",
    "prediction": "",
    "source": "",
    "height": "64",
    "width": "96",
    "vae_tile": "64",
    "original_size": "832x1216",
    "crop": "",
    "target_size": "640x384",
    "scheduler": "euler",
    "steps": "4",
    "guidance_scale": "7.5",
    "seed": "3",
    "prompt": "a rocket",
    "negative_prompt": "blurry",
    "image": "",
    "mask": "",
    "image_guidance_scale": "",
    "cfg_trunc_ratio": "0.5",
    "quality": "1.5",
    "prompt_chunks": "2",
    "clip_skip": "2",
    "embeddings": "embeddings/easynegative.safetensors, embeddings/bad.pt",
    "loras": "loras/film.safetensors:0.4",
    "program": "m5stack",
    "calibration_prompts": "prompts.txt",
}
DEFAULTS = {"sha256": "", "family": "", "config": "", "vae": "", "prediction": "", "source": "", "negative_prompt": ""}
DEFAULTS |= {"text_encoder_place": ""}
DEFAULTS |= {"original_size": "", "crop": "", "target_size": "", "image": "", "mask": ""}
DEFAULTS |= {"scheduler": "dpmpp_2m_karras", "steps": 20, "guidance_scale": 7, "seed": 42, "prompt_chunks": 1}
DEFAULTS |= {"clip_skip": 1, "embeddings": [], "loras": [], "program": "axera", "image_guidance_scale": None}
DEFAULTS |= {"vae_tile": 0, "quality": 0, "cfg_trunc_ratio": None}


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("# a comment\n\n  slice of pizza  \nrocket\n", encoding="utf-8")
    Path("row.yaml").write_text("precision: {unet: S16}\n", encoding="utf-8")


def table(*rows):
    """A table of *rows*, of the columns of the first."""
    lines = [list(rows[0]), *(list(row.values()) for row in rows)]
    return "".join("\t".join(cells) + "\n" for cells in lines)


def read(text):
    path = Path("models.tsv")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_models(path, schema=SCHEMAS / "models.schema.yaml", families=list(FAMILIES))


def refusal(text):
    with pytest.raises(TableError) as caught:
        read(text)
    return str(caught.value)


def faults(text):
    """The faults that an error lists, one per line below its first."""
    return text.splitlines()[1:]


def test_cells_have_their_columns_types():
    assert read(table(ROW)) == {
        "tiny": ROW
        | {
            "height": 64,
            "width": 96,
            "vae_tile": 64,
            "steps": 4,
            "guidance_scale": 7.5,
            "seed": 3,
            "quality": 1.5,
            "prompt_chunks": 2,
            "clip_skip": 2,
            "tokenizer": "",
            "text_encoder_place": "",
            "embeddings": ["embeddings/easynegative.safetensors", "embeddings/bad.pt"],
            "loras": [Lora("loras/film.safetensors", 0.4, 0.4)],
            "calibration_prompts": ["slice of pizza", "rocket"],
            "sizes": (832, 1216, 0, 0, 640, 384),
            "image_guidance_scale": None,
            "cfg_trunc_ratio": 0.5,
        }
    }


@pytest.mark.parametrize(
    ("cells", "sizes"),
    [
        ({"target_size": ""}, (832, 1216, 0, 0, 64, 96)),
        ({"original_size": "", "crop": "16,8", "target_size": ""}, (64, 96, 16, 8, 64, 96)),
        ({"original_size": "", "target_size": ""}, ()),
    ],
)
def test_sizes_that_are_not_given_are_the_pictures(cells, sizes):
    assert read(table(ROW | cells))["tiny"]["sizes"] == sizes


@pytest.mark.parametrize("how", ["empty cells", "no columns"])
def test_what_is_not_given_has_its_default(how):
    row = ROW | dict.fromkeys(DEFAULTS, "")
    given = row if how == "empty cells" else {name: cell for name, cell in row.items() if name not in DEFAULTS}

    (found,) = read(table(given)).values()

    assert {name: found[name] for name in DEFAULTS} == DEFAULTS


def test_prompts_are_taken_as_they_stand():
    prompts = ['a "quoted" word', "null", "NA", "nan", "1girl, (huge:1.3)", "it's", '"', "Élan «vital»", "007", "#1"]

    found = read(table(*(ROW | {"model": f"m{n}", "prompt": prompt} for n, prompt in enumerate(prompts))))

    assert [row["prompt"] for row in found.values()] == prompts


@pytest.mark.parametrize("change", ["\ufeff{}", "{}\n\n"], ids=["byte order mark", "blank last line"])
def test_what_editors_add_does_no_harm(change):
    assert list(read(change.format(table(ROW)))) == ["tiny"]


WRITTEN = {
    "Windows' line ends": lambda text: text.replace("\n", "\r\n").encode(),
    "an old Mac's line ends": lambda text: text.replace("\n", "\r").encode(),
    "UTF-16 of Excel's": lambda text: text.replace("\n", "\r\n").encode("utf-16"),
    "UTF-16, the other way round": lambda text: b"\xfe\xff" + text.encode("utf-16-be"),
    "a byte order mark": lambda text: text.encode("utf-8-sig"),
    "quotes around all texts": lambda text: (
        "".join(
            "\t".join('"' + cell.replace('"', '""') + '"' for cell in line.split("\t")) + "\n"
            for line in text.splitlines()
        )
    ).encode(),
    "quotes where a comma or a quote is": lambda text: (
        "".join("\t".join(_as_excel(cell) for cell in line.split("\t")) + "\n" for line in text.splitlines())
    ).encode(),
    "a comment and a blank line before the header": lambda text: f"# my models\n\n{text}".encode(),
    "comments between the rows": lambda text: text.replace("\n", "\n# a row\n").encode(),
}


def _as_excel(cell):
    return '"' + cell.replace('"', '""') + '"' if "," in cell or '"' in cell else cell


@pytest.mark.parametrize("how", WRITTEN)
def test_a_table_is_read_as_editors_and_spreadsheets_write_it(how):
    row = ROW | {"prompt": 'a "big" rocket, in the night', "negative_prompt": "(blurry:1.2), null"}

    assert read(WRITTEN[how](table(row))) == read(table(row))


@pytest.mark.parametrize("separator", "\u2028\u2029\x85\x0b\x0c\x1c\x1e")
def test_what_only_some_programs_end_a_line_with_is_part_of_a_prompt(separator):
    prompt = f"a rocket{separator}in the night"
    Path("prompts.txt").write_text(f"{prompt}\nrocket\n", encoding="utf-8")

    (row,) = read(table(ROW | {"prompt": prompt})).values()

    assert row["prompt"] == prompt
    assert row["calibration_prompts"] == [prompt, "rocket"]


@pytest.mark.parametrize("how", ["Windows' line ends", "UTF-16 of Excel's", "a byte order mark"])
def test_prompts_are_read_as_editors_write_them(how):
    Path("prompts.txt").write_bytes(WRITTEN[how]('# some\nslice of pizza\nan "old" map, torn\n'))

    assert read(table(ROW))["tiny"]["calibration_prompts"] == ["slice of pizza", 'an "old" map, torn']


MISTAKES = {
    "~/{}": "~/ works in a shell, but not in a table. Write ",
    "$HOME/{}": "$HOME/ works in a shell, but not in a table. Write the whole path.",
    "'{}'": "quotes around a path. Write it without: ",
    "file:///a/{}": "a file:// address. Write the path: /a/",
    "C:\\models\\{}": "a Windows path. Write the file's path on Linux; in WSL: /mnt/c/models/",
    "https://example.org/{}": "an address. axbake downloads only the column checkpoint",
}
PATHS = ("checkpoint", "vae", "config", "embeddings", "loras", "calibration_prompts")


@pytest.mark.parametrize(
    ("column", "written"),
    [(column, written) for column in PATHS for written in MISTAKES if column != "checkpoint" or "https" not in written],
)
def test_a_path_as_others_write_it_is_named_in_every_column(column, written):
    assert f"line 2 (tiny), column {column}: " in (
        told := refusal(table(ROW | {column: written.format("x.safetensors")}))
    )
    assert MISTAKES[written] in told


def test_a_column_that_stands_twice_is_refused():
    text = "\n".join(f"{line}\t{cell}" for line, cell in zip(table(ROW).splitlines(), ("seed", "8"), strict=True))

    assert "column seed: appears 2 times" in refusal(text)


def test_lines_are_counted_with_those_before_the_header():
    assert "line 4 (tiny), column height: 63 is not" in refusal("# mine\n\n" + table(ROW | {"height": "63"}))


@pytest.mark.parametrize("name", ["a", "0", "sd1.5-lcm", "xx_mix.v4"])
def test_good_names_are_taken(name):
    assert list(read(table(ROW | {"model": name}))) == [name]


@pytest.mark.parametrize(
    ("column", "cell", "said"),
    [
        ("model", "../x", "'../x' does not match"),
        ("model", "A", "'A' does not match"),
        ("model", "a" * 101, "has 101 characters; at most 100"),
        ("model", "report.html", "'report.html' is taken, since axbake writes a file of this name"),
        ("model", "summary.tsv", "'summary.tsv' is taken"),
        ("model", ".hidden", "'.hidden' does not match"),
        ("model", "a b", "'a b' does not match"),
        ("model", "a/b", "'a/b' does not match"),
        ("checkpoint", "", "checkpoint: missing"),
        ("family", "pixart", f"'pixart': unknown; known: {', '.join(FAMILIES)}"),
        ("family", "sd11", "'sd11': unknown; did you mean sd1?"),
        ("config", "nowhere.yaml", "nowhere.yaml not found; wanted a YAML file of config entries"),
        ("checkpoint", "ftp://example.org/x.safetensors", "ftp:// is unknown"),
        ("checkpoint", "https://example.org/x?token=abc", "token is a secret"),
        ("height", "500", "500 is not a multiple of 8; take 496 or 504"),
        ("height", "", "height: missing"),
        ("height", "56", "56 is less than the minimum of 64"),
        ("width", "0", "0 is less than the minimum of 64"),
        ("width", "2048", "2048 is greater than the maximum of 1024"),
        ("width", "64.5", "'64.5' is not of type integer"),
        (
            "scheduler",
            "dpm",
            "'dpm' is not one of dpmpp_2m_karras, dpmpp_2m_karras_zero, unipc, euler, ddim, lcm, tcd, euler_a",
        ),
        ("steps", "many", "'many' is not of type integer"),
        ("steps", "0", "0 is less than the minimum of 1"),
        ("guidance_scale", "0.5", "0.5 is less than the minimum of 1"),
        ("guidance_scale", "nan", "nan"),
        ("guidance_scale", "inf", "'inf' is not of type number"),
        ("seed", "9" * 5000, "is not of type integer"),
        ("seed", "-1", "-1 is less than the minimum of 0"),
        ("seed", "4294967296", "4294967296 is greater than the maximum of 4294967295"),
        ("sha256", "abc", "'abc' does not match"),
        ("sha256", "x" * 64, "does not match"),
        ("prompt_chunks", "0", "0 is less than the minimum of 1"),
        ("prompt_chunks", "5", "5 is greater than the maximum of 4"),
        ("original_size", "1024", "'1024' does not match"),
        ("crop", "16x8", "'16x8' does not match"),
        ("target_size", "-1x8", "'-1x8' does not match"),
        ("clip_skip", "0", "0 is less than the minimum of 1"),
        ("embeddings", "a.pt, b.png", "'b.png' is not one of .safetensors, .pt, .bin"),
        ("embeddings", "one/bad.pt, other/Bad.safetensors", "'bad' appears 2 times"),
        ("prompt", "x" * 10_001, "has 10001 characters; at most 10000"),
        ("negative_prompt", "x" * 10_001, "has 10001 characters; at most 10000"),
        ("calibration_prompts", "long.txt", "has 10001 characters; at most 10000. Is a line break missing?"),
        ("prompt", "", "prompt: missing"),
        ("prompt", "  ", "prompt: missing"),
        ("calibration_prompts", "", "calibration_prompts: missing"),
        ("calibration_prompts", "nowhere.txt", "nowhere.txt: No such file or directory"),
        ("calibration_prompts", "comments.txt", "comments.txt has no prompts; wanted one per line"),
        ("calibration_prompts", "latin1.txt", "latin1.txt"),
    ],
)
def test_a_cell_that_cannot_be_used_is_refused_with_its_line_model_and_column(column, cell, said):
    Path("long.txt").write_text("x" * 10_001, encoding="utf-8")
    Path("comments.txt").write_text("# only this\n\n", encoding="utf-8")
    Path("latin1.txt").write_bytes("un café\n".encode("latin-1"))

    text = refusal(table(ROW | {"model": "first"}, ROW | {column: cell}))

    assert text.startswith("models.tsv: ")
    assert len(faults(text)) == 1
    assert "line 3" in text
    assert (cell if column == "model" else "tiny") in text
    assert f"column {column}" in text
    assert said in text


def test_a_row_without_a_name_is_refused():
    text = refusal(table(ROW | {"model": ""}))

    assert "line 2 (no name), column model: missing" in text


def test_a_name_that_stands_twice_is_refused_at_both_lines():
    text = refusal(table(ROW, ROW | {"model": "other"}, ROW))

    assert "line 2 (tiny), column model: 'tiny' appears 2 times" in text
    assert "line 4 (tiny), column model: 'tiny' appears 2 times" in text
    assert "line 3" not in text


def test_lines_are_counted_as_an_editor_counts_them():
    text = table(ROW, ROW | {"model": "other", "height": "500"})
    header, first, second = text.splitlines(keepends=True)

    assert "line 5 (other), column height" in refusal(header + "\n" + first + "\n" + second)


def test_several_faults_are_all_told_at_once():
    text = refusal(
        table(ROW | {"height": "500", "steps": "many"}, ROW | {"model": "B", "scheduler": "dpm", "prompt": ""})
    )

    assert len(faults(text)) == 5
    for place in (
        "line 2 (tiny), column height",
        "line 2 (tiny), column steps",
        "line 3 (B), column model",
        "line 3 (B), column scheduler",
        "line 3 (B), column prompt: missing",
    ):
        assert place in text


def test_unknown_and_missing_columns_are_named_with_the_nearest():
    cells = {("hieght" if name == "height" else name): cell for name, cell in ROW.items() if name != "prompt"}

    text = refusal(table(cells | {"comment": "x"}))

    assert len(faults(text)) == 4
    assert "column hieght: unknown; did you mean height?" in text
    assert (
        "column comment: unknown; known: model, checkpoint" in text or "column comment: unknown; did you mean" in text
    )
    assert "column height: missing" in text
    assert "column prompt: missing" in text


@pytest.mark.parametrize("place", ["the only row", "the first", "the last"])
def test_a_line_of_too_many_cells_is_refused(place):
    header, row = table(ROW).splitlines()
    long, other = row + "\tone more", row.replace("tiny", "other", 1)
    rows = {"the only row": [long], "the first": [long, other], "the last": [other, long]}[place]

    text = refusal("\n".join([header, *rows]) + "\n")

    assert str(2 + rows.index(long)) in text


def test_a_line_that_ends_early_takes_the_defaults_or_says_what_is_missing():
    header, row = table(ROW).splitlines()
    columns = header.split("\t")
    order = [*(name for name in columns if name != "seed"), "seed"]
    cells = dict(zip(columns, row.split("\t"), strict=True))

    (found,) = read("\t".join(order) + "\n" + "\t".join(cells[name] for name in order[:-1]) + "\n").values()
    assert found["seed"] == 42
    assert "column calibration_prompts: missing" in refusal(header + "\n" + "\t".join(row.split("\t")[:-1]) + "\n")


@pytest.mark.parametrize(
    "content", [b"", "model\theight\ncaf\u00e9\t64\n".encode("latin-1")], ids=["empty", "not UTF-8"]
)
def test_a_file_that_is_no_table_is_refused(content):
    text = refusal(content)

    assert text.startswith("models.tsv: ")
    assert "separated by tabs, in UTF-8" in text


def test_a_table_that_is_not_there_is_named_with_the_entry_that_names_it():
    with pytest.raises(TableError, match=r"nowhere\.tsv: no such file\. config\.yaml's entry models"):
        read_models(Path("nowhere.tsv"), schema=SCHEMAS / "models.schema.yaml", families=list(FAMILIES))


def checked(config):
    return check_config(config, source="config.yaml", **OF_CONFIG)


def config_refusal(config):
    with pytest.raises(ProjectConfigError) as caught:
        checked(config)
    return str(caught.value)


def test_the_config_that_is_shipped_is_the_defaults():
    shipped = yaml.safe_load((ROOT / "config" / "config.yaml").read_text())

    assert checked({}) == shipped
    assert checked(shipped) == shipped


def test_what_a_config_leaves_out_has_its_default_at_every_depth():
    found = checked({"precision": {"unet": "S16"}, "parity": {"min_psnr": {"denoiser": 40}}})

    roles = {"text": "U16", "denoiser": "U16", "encoder": "U16", "decoder": "U16"}
    assert found["precision"] == roles | {"unet": "S16"}
    assert found["parity"]["min_psnr"] == dict.fromkeys(ROLES, 60) | {"denoiser": 40}
    assert checked({})["precision"] == roles  # the defaults themselves are as they were


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"toolchian": "native"}, "toolchian: unknown; did you mean toolchain?"),
        ({"precision": {"unet_": "U8"}}, "precision/unet_: unknown; did you mean unet?"),
        ({"precision": {"denoisr": "U8"}}, "precision/denoisr: unknown; did you mean denoiser?"),
        ({"parity": {"min_psnr": {"vae": 40}}}, "parity/min_psnr/vae: unknown; "),
        ({"pulsar2": {"zzz": {}}}, "pulsar2/zzz: unknown; known: text, denoiser, encoder, decoder, text_encoder, unet"),
        ({"pulsar2": {"unet": "fast"}}, "pulsar2/unet: 'fast' is not of type object"),
        ({"zzz": 1}, "zzz: unknown; known: models, toolchain"),
        ({"toolchain": "singularity"}, "toolchain: 'singularity' is not one of emulator, native, docker, podman"),
        ({"precision": {"unet": "U4"}}, "precision/unet: 'U4' does not match ^(U8|U16|S16|recipe|"),
        ({"precision": "U16"}, "precision: 'U16' is not of type object"),
        ({"calibration": None}, "calibration: None is not of type object"),
        ({"calibration": {"samples": "32"}}, "calibration/samples: '32' is not of type integer"),
        ({"calibration": {"samples": True}}, "calibration/samples: True is not of type integer"),
        ({"calibration": {"samples": 0}}, "calibration/samples: 0 is less than the minimum of 1"),
        ({"parity": {"min_psnr": {"unet": -1}}}, "parity/min_psnr/unet: -1 is less than the minimum of 0"),
        ({"pulsar2_version": 4.2}, "pulsar2_version: 4.2 is not of type string"),
        ({"pulsar2_version": "latest"}, "pulsar2_version: 'latest' does not match"),
    ],
)
def test_an_entry_that_cannot_be_used_is_refused_with_its_place(config, said):
    text = config_refusal(config)

    assert text.startswith("config.yaml: ")
    assert len(faults(text)) == 1
    assert said in text


def test_several_entries_are_all_told_at_once():
    text = config_refusal({"toolchian": "native", "npu_mode": "NPU9", "calibration": {"sampels": 8, "seed": -1}})

    assert len(faults(text)) == 4
    for said in ("toolchian: unknown", "npu_mode: 'NPU9'", "calibration/sampels: unknown", "calibration/seed: -1"):
        assert said in text


def row_config(text, config=None):
    """The config of a row whose own file holds *text*."""
    path = Path("row.yaml")
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_row_config(path, config or checked({}), **OF_CONFIG)


def test_a_rows_own_entries_go_over_the_projects_and_those_beside_them_stay():
    project = checked({"precision": {"text": "U8", "unet": "S16"}, "compiled": {"samples": 4}, "npu_mode": "NPU1"})

    found = row_config("precision: {unet: U8, vae_decoder: S16}\ncompiled: {min_sqnr: {denoiser: 30}}\n", project)

    assert found["precision"] == project["precision"] | {"unet": "U8", "vae_decoder": "S16"}
    assert found["compiled"] == {"samples": 4, "min_sqnr": dict.fromkeys(ROLES, 20) | {"denoiser": 30}}
    changed = ("precision", "compiled")
    assert {name: found[name] for name in found if name not in changed} == {
        name: project[name] for name in project if name not in changed
    }
    assert project["precision"] == checked({})["precision"] | {"text": "U8", "unet": "S16"}  # as it was


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "npu_mode: NPU1\ntoolchain: docker\n",
            "npu_mode, toolchain: cannot be set for one row; set it in config/config.yaml",
        ),
        ("npu_mode: NPU1\n", "A row can set pulsar2, host_weights, precision, calibration, compiled, picture, parity."),
        ("precisoin: {unet: U8}\n", "precisoin: unknown; did you mean precision?"),
        ("precision: {unet_: U8}\n", "precision/unet_: unknown; did you mean unet?"),
        ("precision: {unet: U4}\n", "precision/unet: 'U4' does not match ^(U8|U16|S16|recipe|"),
        ("precision: U8\n", "precision: 'U8' is not of type object"),
        ("1: 2\n", "1: unknown"),
        ("", "no entries; wanted entries of config.yaml"),
        ("- precision\n", "no entries; wanted entries of config.yaml"),
        ("precision: [\n", "Wanted a YAML file of config entries"),
        (b"precision: \xe9\n", "Wanted a YAML file of config entries"),
    ],
)
def test_a_rows_entries_that_cannot_be_used_are_refused_with_their_file(text, said):
    with pytest.raises(ProjectConfigError) as caught:
        row_config(text)

    assert str(caught.value).startswith("row.yaml: ")
    assert said in str(caught.value)


def row_of(**cells):
    return ROW | {"checkpoint": "tiny.safetensors"} | cells


def test_a_checkpoint_is_known_by_its_sha256_or_the_first_ten_digits_of_it():
    Path("tiny.safetensors").write_bytes(b"content")
    whole = hashlib.sha256(b"content").hexdigest()

    for given in ("", whole, whole[:10]):
        assert checkpoint_sha256(row_of(sha256=given)) == whole


def test_another_checkpoint_than_the_tables_is_refused_with_both_checksums():
    Path("tiny.safetensors").write_bytes(b"content")

    for given in ("0" * 10, "0" * 64):
        with pytest.raises(WrongChecksum) as caught:
            checkpoint_sha256(row_of(sha256=given))
        assert "tiny: tiny.safetensors has SHA-256 " + hashlib.sha256(b"content").hexdigest() in str(caught.value)
        assert f"the table says {given}" in str(caught.value)


def test_a_checkpoint_that_is_not_there_is_named_with_where_it_is_had_and_where_it_belongs():
    with pytest.raises(MissingCheckpoint) as caught:
        checkpoint_sha256(row_of(source="https://example.org/models/1", sha256="0123456789"))

    text = str(caught.value)
    assert text.startswith(
        "tiny: tiny.safetensors is not there. Download it from https://example.org/models/1 and save"
    )
    assert "(SHA-256 0123456789…)" in text
    with pytest.raises(MissingCheckpoint, match=r"is not there\. Put the file there"):
        checkpoint_sha256(row_of())


def test_a_vae_is_known_by_its_sha256_and_named_if_it_is_not_there():
    row = row_of() | {"vae": "vae.safetensors"}

    with pytest.raises(MissingVae, match=r"tiny: vae\.safetensors is not there\. Put the VAE there"):
        vae_sha256(row)
    Path("vae.safetensors").write_bytes(b"content")
    assert vae_sha256(row) == hashlib.sha256(b"content").hexdigest()


def test_embeddings_are_known_by_their_sha256_and_all_that_are_not_there_are_named():
    row = row_of() | {"embeddings": ["one.pt", "two.pt", "three.pt"]}
    Path("two.pt").write_bytes(b"content")

    with pytest.raises(MissingEmbedding, match=r"tiny: one\.pt, three\.pt: not there\. Put the files there"):
        embeddings_sha256(row)
    digest = hashlib.sha256(b"content").hexdigest()
    assert embeddings_sha256(row | {"embeddings": ["two.pt", "two.pt"]}) == [digest, digest]


@pytest.mark.parametrize("name", ["a" * 300, "a/" * 3000, "a\x00b", "config.yaml/x"])
def test_a_path_that_no_file_can_have_is_not_there(name):
    Path("config.yaml").write_text("models: x\n", encoding="utf-8")
    path = f"{name}.safetensors"
    row = row_of(checkpoint=path) | {"vae": path, "embeddings": [path]}

    for error, read_it in (
        (MissingCheckpoint, checkpoint_sha256),
        (MissingVae, vae_sha256),
        (MissingEmbedding, embeddings_sha256),
        (MissingLora, lambda row: loras_sha256(row, [Lora(path)])),
        (TableError, lambda _: read_models(Path(path), schema=SCHEMAS / "models.schema.yaml", families=[])),
    ):
        with pytest.raises(error) as caught:
            read_it(row)
        assert "not there" in str(caught.value) or "no such file" in str(caught.value)
        assert len(str(caught.value)) < 800 and "\0" not in str(caught.value)
    assert "column config: " in refusal(table(ROW | {"config": path}))


@pytest.mark.parametrize("column", list(ROW))
def test_a_cell_of_a_megabyte_is_quoted_in_part(column):
    Path("models.tsv").write_text(table(ROW | {column: "x" * 10**6}), encoding="utf-8")

    try:
        rows = read_models(Path("models.tsv"), schema=SCHEMAS / "models.schema.yaml", families=list(FAMILIES))
        checkpoint_sha256(*rows.values())
    except (TableError, MissingCheckpoint) as error:
        assert len(str(error)) < 3000


def test_a_column_of_a_megabyte_and_thousands_of_mistakes_are_quoted_in_part():
    assert len(refusal(table(ROW | {"x" * 10**6: ""}))) < 3000
    assert len(refusal(table(*([ROW | {"height": "x"}] * 5000)))) < 30_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("models: a\n  bad: [1, 2\n", "line 2, column"),
        ("", "config.yaml: holds no entries"),
        ("- a\n", "config.yaml: holds no entries"),
        ("a: \xff", "config.yaml: byte 3 is not UTF-8"),
        ("__use_yte__: true\n?print(1): 1\n", "__use_yte__: Snakemake would run the Python code"),
    ],
)
def test_a_config_that_is_none_or_has_code_is_refused_with_file_and_line(text, said):
    path = Path("config.yaml")
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(ProjectConfigError) as caught:
        read_config(path)

    assert str(caught.value).startswith("config.yaml: ") and said in str(caught.value)


def test_every_entry_of_the_schemas_says_what_it_means():
    def entries(schema, place):
        for name, entry in schema.get("properties", {}).items():
            yield f"{place}{name}", entry
            yield from entries(entry, f"{place}{name}/")

    for path in SCHEMAS.glob("*.yaml"):
        for place, entry in entries(yaml.safe_load(path.read_text()), ""):
            # Entries for one component each share the settings above them.
            if not place.startswith(("precision/", "parity/min_psnr/")):
                assert entry.get("description"), f"{path.name}: {place}"


def test_a_lora_that_is_not_there_is_named():
    Path("there.safetensors").write_bytes(b"there")
    row = {"model": "tiny"}

    with pytest.raises(
        MissingLora, match=r"tiny: gone\.safetensors: not there\. Put the files there, or correct the column"
    ):
        loras_sha256(row, [Lora("there.safetensors"), Lora("gone.safetensors")])
    assert loras_sha256(row, [Lora("there.safetensors")]) == [hashlib.sha256(b"there").hexdigest()]
