"""`axbake add` writes a row that can be baked, and leaves all others as they were."""

import shutil
from pathlib import Path

import pytest

from axbake import add
from axbake.__main__ import main
from axbake.add import PICTURE, SCHEMAS, edit_table, free_name, licence_note, read_table, row_cells, trained_words
from axbake.bake import row_of
from axbake.families import FAMILIES
from axbake.fetch.errors import BadSource
from axbake.fetch.sources import check_pin, parse_source
from axbake.fetch.store import Fetched
from axbake.model import Model
from axbake.project import lay_out
from axbake.table import check_config
from tests import tiny
from tests.services.model_sites import COMMIT, model_sites

ROOT = Path(__file__).parents[2]
TABLE = Path("config/models.tsv")
AIR = "urn:air:sd1:checkpoint:civitai:47274@102222"
PAGE = "https://civitai.com/models/47274"


@pytest.fixture(scope="module")
def hosts():
    with model_sites() as sites:
        yield sites


@pytest.fixture
def sites(hosts, tmp_path, monkeypatch):
    """A user's project, and sites with nothing on them."""
    for shelf in (hosts.files, hosts.api, hosts.downloads, hosts.private, hosts.faults, hosts.log):
        shelf.clear()
    shutil.copytree(ROOT / "config", tmp_path / "config")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CIVITAI_ENDPOINT", hosts.site)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("CIVITAI_API_TOKEN", raising=False)
    return hosts


def test_a_link_becomes_a_row_with_pin_prompt_and_terms(sites, model, capsys):
    digest = sites.publish(model.checkpoint.read_bytes())
    header, *rows = TABLE.read_bytes().splitlines(keepends=True)

    assert main(["add", PAGE]) == 0

    found = TABLE.read_bytes().splitlines(keepends=True)
    assert found[0] == header.removesuffix(b"\n") + b"\tfamily\n"  # a column that the table did not have
    assert found[1:-1] == rows  # as they were
    row = read_table(TABLE)["tiny-mix-v4.0"]
    assert row["family"] == "sd1"  # which the workflow has to know before the file is there
    assert row["checkpoint"] == AIR  # the page alone would mean the latest version, whichever that will be
    assert row["sha256"] == digest
    assert row["source"] == (
        "https://civitai.com/models/47274?modelVersionId=102222"
        " (credit its author; commercial use: Image, RentCivit; same terms for merges)"
    )
    assert (row["height"], row["width"]) == (512, 512)
    assert row["prompt"] == f"tinystyle, {PICTURE['prompt']}"
    assert row["negative_prompt"] == PICTURE["negative_prompt"]
    assert "snakemake --cores 4 results/tiny-mix-v4.0/report.html" in capsys.readouterr().out

    assert main(["add", PAGE]) == 1
    assert "already has this file, as tiny-mix-v4.0" in capsys.readouterr().err
    assert main(["add", PAGE, "--name", "again"]) == 0
    assert list(read_table(TABLE))[-2:] == ["tiny-mix-v4.0", "again"]
    assert len(sites.asked("storage")) == 1


def test_a_distilled_model_gets_its_sampler(sites, model):
    sites.publish(model.checkpoint.read_bytes(), baseModel="SD 1.5 LCM")

    assert main(["add", AIR, "--name", "fast"]) == 0

    row = read_table(TABLE)["fast"]
    assert (row["scheduler"], row["steps"], row["guidance_scale"]) == ("lcm", 4, 1)


@pytest.mark.parametrize(("base", "steps", "wanted"), [("SD 2.1 768", None, (768, 20, 7)), ("SD 1.5", 1, (512, 1, 1))])
def test_size_and_steps_are_those_that_the_model_was_made_for(base, steps, wanted, sites):
    fetched = Fetched(Path("x"), "0" * 64, {"base_model": base, "file_name": "x"})
    cells = {"model": "some"} | row_cells(AIR, fetched, family="sd1", steps=steps)
    edit_table(TABLE, lambda header, lines: lines.append([cells.get(column, "") for column in header]))

    row = read_table(TABLE)["some"]
    assert (row["height"], row["steps"], row["guidance_scale"]) == wanted
    assert row["height"] == row["width"]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_family_is_read_from_the_file_and_the_workflow_takes_it_from_the_row(family, sites, model_of):
    sites.publish(model_of(family).checkpoint.read_bytes())

    assert main(["add", AIR, "--name", "new"]) == 0

    rows = read_table(TABLE)
    assert rows["new"]["family"] == family
    assert rows["demo"]["family"] == ""
    found = Model(rows["new"], check_config({}, schema=SCHEMAS / "config.schema.yaml", source="", components=()))
    assert found.family.name == family


@pytest.mark.parametrize(
    ("cell", "pinned"),
    [
        (PAGE, AIR),
        ("civitai.com/models/47274/tiny-mix", AIR),
        (f"{PAGE}?format=PickleTensor", f"{AIR}.ckpt"),
        ("urn:air:sd1:checkpoint:civitai:47274+7001.ckpt", f"{AIR}+7001.ckpt"),
        (f"'{PAGE}?modelVersionId=102222'", f"{PAGE}?modelVersionId=102222"),
        ("hf://someone/tiny/tiny.safetensors", "hf://someone/tiny/tiny.safetensors"),
    ],
)
def test_a_row_names_the_version_and_still_the_file_that_the_address_meant(cell, pinned):
    record = {"air": AIR, "page": f"{PAGE}?modelVersionId=102222"}
    source = parse_source(cell)

    assert add.pinned_address(source, record) == pinned
    again = parse_source(add.pinned_address(source, record | {"air": None}))
    assert again.pickled == source.pickled
    assert getattr(again, "file", None) == getattr(source, "file", None)
    assert getattr(again, "version", 102222) == 102222


def test_trained_words_are_words_of_a_prompt_and_no_more():
    said = ['"cute"', "=HYPERLINK(1)", "<lora:x:1>", "<lora:x:1> girl", " , ", *["long word"] * 100]

    words = trained_words({"trained_words": said})

    assert words.startswith("cute, HYPERLINK(1), girl, long word, ")
    assert len(words) <= 200 and words.endswith("long word")


def test_a_header_as_spreadsheets_write_it_is_found_and_lines_without_the_column_are_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(add, "read_table", lambda path: {})  # what it takes is not the question here
    table = tmp_path / "models.tsv"
    table.write_bytes(b'\xef\xbb\xbfcheckpoint\t"model"\nx.safetensors\tmine\n\n')

    def mark(header, lines):
        header.append("sha256")
        column = header.index("model")
        for line in lines:
            if len(line) > column and line[column] == "mine":
                line.append("0")

    edit_table(table, mark)

    assert table.read_bytes() == b'\xef\xbb\xbfcheckpoint\t"model"\tsha256\nx.safetensors\tmine\t0\n\n'


def test_pinning_passes_over_lines_that_are_too_short_for_a_name(sites, capsys):
    digest = sites.publish(b"whatever")
    header, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    columns = ["source", *(name for name in header.split("\t") if name != "source")]
    cells = dict(zip(header.split("\t"), lines[0].split("\t"), strict=False)) | {"model": "new", "checkpoint": PAGE}
    row = "\t".join("" if name == "sha256" else cells.get(name, "") for name in columns)
    TABLE.write_text("\n".join(["\t".join(columns), "", row]) + "\n", encoding="utf-8")

    assert main(["add", "--pin", "new"]) == 0, capsys.readouterr().err
    assert read_table(TABLE)["new"]["sha256"] == digest


def test_a_config_that_is_not_yaml_ends_in_a_sentence_with_its_line(sites, capsys):
    Path("config/config.yaml").write_text("models: [\n", encoding="utf-8")

    assert main(["add", AIR]) == 1
    said = capsys.readouterr().err
    assert said.startswith("ProjectConfigError: config/config.yaml: ") and "line 2" in said


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_table_keeps_its_encoding(sites, model, encoding):
    text = "# mine\r\nmodel\tcheckpoint\theight\twidth\tprompt\tcalibration_prompts\r\n"
    TABLE.write_bytes(text.encode(encoding))
    sites.publish(model.checkpoint.read_bytes())

    assert main(["add", AIR, "--name", "new"]) == 0

    assert TABLE.read_bytes().startswith(text.removesuffix("\r\n").encode(encoding))
    assert list(read_table(TABLE)) == ["new"]


def test_columns_that_the_table_lacks_are_added_and_lines_keep_their_ending(sites, model):
    prompts = TABLE.read_text(encoding="utf-8").splitlines()[1].split("\t")[-1]
    lines = [
        "model\tcheckpoint\theight\twidth\tprompt\tcalibration_prompts",
        f"mine\tx.safetensors\t64\t64\tpanda\t{prompts}",
        "",
        "",
    ]
    TABLE.write_bytes("\r\n".join(lines).encode())
    sites.publish(model.checkpoint.read_bytes())

    assert main(["add", AIR, "--name", "new"]) == 0

    text = TABLE.read_bytes().decode()
    assert text.split("\r\n")[1] == lines[1]
    assert text.count("\n") == text.count("\r\n") == 3
    rows = read_table(TABLE)
    assert rows["mine"]["prompt"] == "panda" and rows["mine"]["sha256"] == ""
    assert rows["new"]["sha256"]


def repository(networks, place):
    """Files of a diffusers folder by name, and some that axbake does not read."""
    folder = tiny.save_folder(networks, place)
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    beside = [
        "README.md",
        "sd.ckpt",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.bin",
    ]
    beside += ["safety_checker/model.safetensors", "unet/../../evil.json", "../evil/config.json", "/etc/config.json"]
    return files | dict.fromkeys(beside, b"x")


def test_a_whole_repository_of_hugging_face_becomes_a_folder_and_a_row(sites, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", sites.site)
    files = repository(tiny.sd1(), tmp_path / "saved")
    sites.publish_folder_on_hub(files)
    broken = "/someone/tiny/resolve/" + COMMIT + "/vae/diffusion_pytorch_model.safetensors"
    sites.downloads.pop(broken)

    assert main(["add", "hf://someone/tiny"]) == 1
    folder = Path("checkpoints/someone--tiny")
    assert "HTTP 404" in capsys.readouterr().err and not (folder / "model_index.json").exists()

    sites.publish_folder_on_hub(files)
    before = len(sites.log)
    assert main(["add", "https://huggingface.co/someone/tiny/tree/main"]) == 0

    row = read_table(TABLE)["tiny"]
    assert (row["checkpoint"], row["source"]) == (str(folder), "https://huggingface.co/someone/tiny")
    there = {path for path in folder.rglob("[!.]*") if path.is_file()}
    saved = {
        path.relative_to(tmp_path / "saved") for path in (tmp_path / "saved").rglob("*.*") if path.suffix in ENDINGS
    }
    assert {path.relative_to(folder) for path in there} == saved
    assert all(path.read_bytes() == files[str(path.relative_to(folder))] for path in there)
    assert not list(tmp_path.rglob("evil*"))
    asked = [seen for seen in sites.log[before:] if seen.host == "storage"]
    assert 0 < len(asked) < len(there)  # what had arrived is not fetched again

    assert main(["add", "hf://someone/tiny", "--name", "again"]) == 0
    assert len([seen for seen in sites.log if seen.host == "storage"]) == len(there)


ENDINGS = (".json", ".txt", ".safetensors")  # of the files that a diffusers folder of Stable Diffusion has


def test_a_repository_without_an_index_is_no_folder_and_names_its_files(sites, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", sites.site)
    sites.publish_folder_on_hub({"sd.safetensors": b"x", "unet/config.json": b"{}"})

    assert main(["add", "hf://someone/tiny"]) == 1

    said = capsys.readouterr().err
    assert "has no model_index.json or modular_model_index.json" in said and "sd.safetensors" in said
    assert not Path("checkpoints").exists()


def test_a_row_cannot_name_a_whole_repository():
    with pytest.raises(
        BadSource, match=r"is a whole repository, and a row names one file\. `axbake add hf://a/b` downloads"
    ):
        check_pin({"model": "x", "checkpoint": "hf://a/b", "sha256": "0" * 64}, allow_unpinned=True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["checkpoints/x.safetensors"], "checkpoints/x.safetensors: not a file, a folder or an address. Give"),
        (["ftp://example.org/x"], "ftp:// is unknown"),
        ([AIR, "--name", "demo"], "already has a row demo"),
        ([AIR, "--name", "Big Name"], "'Big Name' does not match"),
        ([AIR], "fit no family"),
        (["urn:air:sd1:checkpoint:civitai:47274@7"], "HTTP 404"),
        (["--pin", "nobody"], "has no row nobody; there are demo"),
        (["--pin", "demo"], "its checkpoint is a path"),
    ],
)
def test_what_cannot_be_added_leaves_the_table_as_it_was(arguments, said, sites, model, capsys):
    other = b"\x08\0\0\0\0\0\0\0{}      "
    sites.publish(model.checkpoint.read_bytes() if "Big Name" in arguments else other)
    before = TABLE.read_bytes()

    assert main(["add", *arguments]) == 1

    assert said in capsys.readouterr().err
    assert TABLE.read_bytes() == before
    assert [path.name for path in Path("config").iterdir() if path.name.startswith(".")] == []
    assert bool(sites.asked("storage")) == (arguments == [AIR])  # all other faults are reported before a download


def test_a_row_is_pinned_without_a_download_where_the_site_tells_its_digest(sites, capsys):
    digest = sites.publish(b"whatever")
    lines = TABLE.read_text(encoding="utf-8").splitlines()
    cells = lines[1].split("\t")
    cells[0:3] = ["new", PAGE, ""]
    TABLE.write_text("\n".join([*lines, "\t".join(cells)]) + "\n", encoding="utf-8")

    assert main(["add", "--pin", "new"]) == 0

    assert f"new: wrote sha256 {digest} to config/models.tsv" in capsys.readouterr().out
    assert TABLE.read_text(encoding="utf-8").splitlines()[:-1] == lines
    assert read_table(TABLE)["new"]["sha256"] == digest
    assert not sites.asked("storage")
    changed = sites.publish(b"another", primary=False)
    sites.api["/api/v1/model-versions/102222"]["files"].pop(0)
    del sites.api[f"/api/v1/model-versions/by-hash/{digest.upper()}"]
    assert main(["add", "--pin", "new"]) == 1
    said = capsys.readouterr().err
    assert digest in said and changed in said


def test_names_are_made_of_what_the_page_says_and_are_free():
    assert free_name("XXMix_9 «Realistic» ★ v4.0", set()) == "xxmix_9-realistic-v4.0"
    assert free_name("XXMix_9 «Realistic» ★ v4.0", {"xxmix_9-realistic-v4.0"}) == "xxmix_9-realistic-v4.0-2"
    assert free_name("Some File", set()) == "some-file"
    assert free_name("麦橘写实", set()) == "model"


def test_terms_in_a_few_words():
    assert licence_note({"allowNoCredit": True, "allowCommercialUse": "None", "allowDerivatives": False}) == (
        "no credit needed; commercial use: none; no merges"
    )
    assert licence_note({"license": "creativeml-openrail-m"}) == "creativeml-openrail-m"
    assert licence_note({}) == ""


def test_a_file_of_the_users_gets_a_row_too(sites, model, capsys):
    place = Path("checkpoints/My Model.safetensors")
    place.parent.mkdir()
    place.write_bytes(model.checkpoint.read_bytes())

    assert main(["add", str(place)]) == 0, capsys.readouterr().err

    row = read_table(TABLE)["my-model"]
    assert (row["checkpoint"], row["sha256"], row["family"]) == (str(place), "", "")
    assert row["prompt"] == PICTURE["prompt"]
    assert not sites.asked("storage")


def test_bake_finds_the_row_of_a_file_an_address_or_a_name(sites, model):
    place = Path("mine.safetensors")
    place.write_bytes(model.checkpoint.read_bytes())
    sites.publish(model.checkpoint.read_bytes())

    assert row_of(str(place), None) == row_of(str(place.resolve()), None) == row_of("mine", None) == "mine"
    assert row_of(str(place), "again") == "again"
    assert row_of(PAGE, None) == row_of(PAGE, None)
    assert len(read_table(TABLE)) == 5  # with those of the demos


def test_an_installed_axbake_makes_a_project_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "models.tsv").write_text("mine")

    made = lay_out()

    assert {"Snakefile", "config/config.yaml", "profiles/default/config.yaml"} <= set(made)
    assert all((tmp_path / path).is_file() for path in made)
    assert (tmp_path / "config" / "models.tsv").read_text() == "mine"
    assert lay_out() == []


@pytest.mark.parametrize("name", ["a\x1b[2Jb", "a\tb", "a\nb", "a\udcffb"])
def test_a_file_whose_name_no_table_can_hold_is_refused(name, sites, model, capsys):
    before = TABLE.read_bytes()
    path = Path(f"{name}.safetensors")
    path.write_bytes(model.checkpoint.read_bytes())

    assert main(["add", str(path)]) == 1

    said = capsys.readouterr().err
    assert said.isascii() and said[:-1].isprintable() and "a name that no table can hold. Rename the file." in said
    assert TABLE.read_bytes() == before


def test_a_path_that_leads_nowhere_makes_no_project(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    assert main(["bake", "nowhere.safetensors"]) == main(["add", "nowhere.safetensors"]) == 1

    assert "nowhere.safetensors: not a file, a folder or an address" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
