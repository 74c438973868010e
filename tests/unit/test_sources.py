"""Which file each network of a row comes from, in whatever form it is brought; looked up once, and refused by name."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from axbake import sources as module
from axbake.checkpoints.containers import UnreadableCheckpoint
from axbake.checkpoints.refusals import UnknownFamily
from axbake.digest import files_sha256
from axbake.fetch.errors import Unpinned
from axbake.sources import CHECKPOINT, COLUMNS, VAE, Sources, check_vae, read_header
from axbake.table import MissingCheckpoint, MissingEmbedding, MissingVae, WrongChecksum
from tests import tiny
from tests.unit.conftest import SD1, halves, row_of

PAGE = "https://civitai.com/models/47274?modelVersionId=102222"
DIGEST = "0123456789" * 6 + "abcd"
LDM = "first_stage_model."


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sources(*, allow_unpinned=False, **cells):
    return Sources(row_of(**cells), allow_unpinned=allow_unpinned)


def sha256(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def networks():
    return tiny.bk_sdm_tiny()


def recipe(networks, path):
    """A recipe of two checkpoints that are the same."""
    entries = {}
    for name in "ab":
        checkpoint = tiny.save(networks, path.with_name(f"{path.stem}-{name}.safetensors"))
        entries[name] = {"path": str(checkpoint), "sha256": sha256(checkpoint)}
    step = {"method": "weighted_sum", "a": "a", "b": "b", "alpha": 0.5}
    path.write_text(yaml.safe_dump({"checkpoints": entries, "steps": [step]}))
    return path


FORMS = {
    "a pickle": lambda networks: tiny.save_pickle(networks, Path("tiny.ckpt")),
    "a folder": lambda networks: tiny.save_folder(networks, Path("tiny")),
    "a recipe": lambda networks: recipe(networks, Path("tiny.yaml")),
}


def test_a_users_safetensors_file_is_taken_as_it_is(networks):
    tiny.save(networks, Path("tiny.safetensors"))
    found = sources()
    digest = sha256("tiny.safetensors")

    assert not found.is_remote(CHECKPOINT) and not found.is_converted(CHECKPOINT)
    assert found.file(CHECKPOINT) == found.arrived(CHECKPOINT) == "tiny.safetensors"
    assert found.brought(CHECKPOINT) == ["tiny.safetensors"]
    assert found.digest() == found.brought_digest(CHECKPOINT) == found.file_digest(CHECKPOINT) == digest
    assert found.fetch_records == []


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("column", COLUMNS)
def test_what_is_of_another_form_becomes_safetensors_first(form, column, networks):
    tiny.save(networks, Path("tiny.safetensors"))
    path = FORMS[form](networks)
    found = sources(**{column: str(path)})
    brought = [Path(file) for file in found.brought(column)]

    assert found.is_converted(column)
    assert found.file(column) == f"results/tiny/{column}.safetensors"
    assert found.arrived(column) == str(path)
    assert brought and all(file.is_file() for file in brought)
    assert path in brought or all(path in file.parents for file in brought)
    assert found.digest(column) == found.brought_digest(column) == files_sha256(brought)
    assert found.file_digest(column) is None  # a job makes it, so its content counts itself


def test_halves_of_the_autoencoder_come_from_the_column_vae_where_it_names_a_file(networks):
    tiny.save(networks, Path("tiny.safetensors"))
    with_vae, without = sources(vae="vae.safetensors"), sources()

    columns = {component.name: with_vae.column_of(component) for component in SD1.components}
    assert columns == dict.fromkeys(SD1.names, CHECKPOINT) | dict.fromkeys(halves(SD1), VAE)
    assert {without.column_of(component) for component in SD1.components} == {CHECKPOINT}


@pytest.mark.parametrize(
    ("address", "converted"),
    [
        (PAGE, False),
        (f"{PAGE}&format=PickleTensor", True),
        ("hf://owner/repository/model.ckpt", True),
        ("https://example.org/model.safetensors", False),
    ],
)
def test_what_is_to_be_fetched_is_known_by_the_table_alone(address, converted):
    found = sources(checkpoint=address, sha256=DIGEST)

    assert found.remote and found.is_remote(CHECKPOINT) and not found.is_remote(VAE)
    assert found.arrived(CHECKPOINT) == "results/tiny/fetched/checkpoint"
    assert found.brought(CHECKPOINT) == ["results/tiny/fetched/checkpoint"]
    assert found.is_converted(CHECKPOINT) == converted
    wanted = "results/tiny/checkpoint.safetensors" if converted else "results/tiny/fetched/checkpoint"
    assert found.file(CHECKPOINT) == wanted
    assert found.digest() == DIGEST
    assert found.brought_digest(CHECKPOINT) is found.file_digest(CHECKPOINT) is None
    assert found.fetch_records == ["results/tiny/fetched/source.json"]
    assert found.sidecar == ""


def test_an_address_without_a_pin_is_refused_unless_config_allows_it():
    with pytest.raises(Unpinned, match=r"tiny: the column sha256 is empty.*axbake add --pin tiny"):
        sources(checkpoint=PAGE).file(CHECKPOINT)

    assert sources(checkpoint=PAGE, allow_unpinned=True).digest() == ""


def test_files_that_are_not_there_or_others_are_named(networks):
    with pytest.raises(MissingCheckpoint, match=r"tiny\.safetensors is not there"):
        sources().file(CHECKPOINT)
    tiny.save(networks, Path("tiny.safetensors"))
    with pytest.raises(WrongChecksum, match=f"has SHA-256 {sha256('tiny.safetensors')}, the table says 0000000000"):
        sources(sha256="0" * 10).brought(CHECKPOINT)
    with pytest.raises(MissingVae, match=r"nowhere\.safetensors is not there"):
        sources(vae="nowhere.safetensors").file(VAE)
    with pytest.raises(MissingEmbedding, match=r"gone\.pt: not there"):
        _ = sources(embeddings="gone.pt").embeddings_digest


def test_everything_is_looked_up_once(networks):
    tiny.save(networks, Path("tiny.safetensors"))
    Path("tiny.yaml").write_text('model: {params: {parameterization: "v"}}', encoding="utf-8")
    found = sources()
    asked = found.digest(), found.sidecar

    Path("tiny.safetensors").unlink()
    Path("tiny.yaml").unlink()

    assert (found.digest(), found.sidecar) == asked
    assert asked[1] == "v_prediction"
    with pytest.raises(MissingCheckpoint):
        sources().digest()


def test_embeddings_are_known_by_name_and_content():
    for name, content in {"easynegative.pt": b"one", "mine.safetensors": b"two"}.items():
        Path(name).write_bytes(content)
    found = sources(embeddings="easynegative.pt, mine.safetensors")

    assert found.embedding_names == ["easynegative", "mine"]
    assert found.embeddings_digest == f"{sha256('easynegative.pt')} {sha256('mine.safetensors')}"
    assert (sources().embedding_names, sources().embeddings_digest) == ([], "")


def other(name, shape):
    """A VAE's file with a tensor of something else."""
    tensors = {
        key.removeprefix(LDM): tensor
        for key, tensor in tiny.single_file_tensors(tiny.sd1()).items()
        if key.startswith(LDM)
    }
    return tensors | {name: torch.zeros(shape)}


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
@pytest.mark.parametrize(
    ("name", "shape", "kind"),
    [
        ("conditioner.embedders.1.model.ln_final.weight", (4,), "a part of a Stable Diffusion XL checkpoint"),
        (
            "model.diffusion_model.double_layers.0.attn.w1q.weight",
            (4, 4),
            "an AuraFlow checkpoint",
        ),
    ],
)
def test_a_vae_of_another_model_is_refused_before_anything_starts(form, name, shape, kind):
    """Stable Diffusion XL's has the shapes of 1.x and other latents, so a picture drawn with it would be grey."""
    path = Path(f"vae.{'safetensors' if form == 'safetensors' else 'pt'}")
    if form == "safetensors":
        save_file(other(name, shape), path)
    else:
        torch.save(other(name, shape), path)
    found = sources(vae=str(path))

    for ask in (found.digest, found.file, found.brought, found.is_converted):
        with pytest.raises(UnknownFamily, match=f"this is {kind}, wanted a VAE or a checkpoint of Stable Diffusion"):
            ask(VAE)


def test_a_vae_that_cannot_be_read_is_refused_before_anything_starts(networks):
    whole = tiny.save(networks, Path("tiny.safetensors")).read_bytes()
    Path("vae.safetensors").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(
        UnreadableCheckpoint, match=r"vae\.safetensors: \d+ bytes that are not a complete safetensors file"
    ):
        sources(vae="vae.safetensors").file(VAE)


def test_a_recipe_is_judged_by_its_checkpoints(networks):
    check_vae(recipe(networks, Path("vae.yaml")))
    save_file(other("conditioner.embedders.1.model.ln_final.weight", (4,)), Path("xl.safetensors"))
    content = yaml.safe_load(Path("vae.yaml").read_text(encoding="utf-8"))
    content["checkpoints"]["a"] = {"path": "xl.safetensors", "sha256": sha256("xl.safetensors")}
    Path("vae.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    with pytest.raises(UnknownFamily, match=r"vae\.yaml: this is a part of a Stable Diffusion XL checkpoint"):
        check_vae(Path("vae.yaml"))


class Look:
    """Counts how often it is asked."""

    def __init__(self):
        self.asked = 0

    def __call__(self, container):
        self.asked += 1
        return sorted(container.shapes)[0]


CODE = "axbake.sources.check_vae"


@pytest.mark.parametrize("form", ["safetensors", "pickle"])
def test_what_a_header_says_is_remembered_while_the_file_and_the_code_are_the_same(form, monkeypatch):
    path = Path("file.safetensors" if form == "safetensors" else "file.ckpt")

    def write(name):
        tensors = {name: torch.zeros(2)}
        if form == "safetensors":
            save_file(tensors, path)
        else:
            torch.save(tensors, path)

    write("first")
    look = Look()

    assert [read_header(path, "first", look, CODE) for _ in range(3)] == ["first"] * 3
    assert look.asked == 1
    read_header(path, "second", look, CODE)  # another question
    assert look.asked == 2
    read_header(path, "first", look, CODE, "axbake.model.family_of")  # decided by other code
    assert look.asked == 3
    write("a second")
    assert read_header(path, "first", look, CODE) == "a second"
    assert look.asked == 4
    notes = [json.loads(note.read_text()) for note in (Path(".axbake") / "digests").iterdir()]
    assert len(notes) == 3

    module._digest.cache_clear()
    monkeypatch.setattr(module, "code_of", lambda *functions: {"axbake.sources": "changed"})
    read_header(path, "first", look, CODE)
    assert look.asked == 5
    module._digest.cache_clear()


def test_of_a_folder_nothing_is_remembered_since_its_own_time_says_nothing(networks):
    folder, look = tiny.save_folder(networks, Path("tiny")), Look()

    for _ in range(2):
        read_header(folder, "first", look, CODE)

    assert look.asked == 2
