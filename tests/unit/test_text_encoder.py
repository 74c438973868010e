"""A text encoder with embeddings and clip skip is what the web UI makes of it; a file that is no embedding is refused."""

import json
import os
import re

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file

from axbake.checkpoints.embeddings import EmbeddingError, read_embedding
from axbake.distance import psnr
from axbake.drawing.prompts import load_tokenizer, text_encoding
from axbake.graphs.parity import measure_parity
from axbake.networks.clip_skip import ClipSkipError
from axbake.networks.component import as_files
from axbake.runtime.prompt import chunk_prompt, embed_prompt
from axbake.runtime.session import open_model
from axbake.weights.embeddings import list_embeddings
from axbake.weights.files import read_description, read_tensor
from axbake.weights.importing import import_component
from axbake.weights.networks import load
from tests import tiny
from tests.unit.conftest import SD1, export_part, import_part, tensors_of

ENCODER = SD1.component("text_encoder")
TABLE = "embeddings.token_embedding.weight"
SEEDED = torch.Generator().manual_seed(5)
VECTORS = {
    name: torch.randn((count, tiny.WIDTH), generator=SEEDED)
    for name, count in [("easynegative", 8), ("mine", 1), ("neg_v1", 3)]
}


def web_ui(vectors):
    """What AUTOMATIC1111 saves as .pt."""
    return {
        "string_to_token": {"*": 265},
        "string_to_param": {"*": vectors},
        "name": "x",
        "step": 99,
        "sd_checkpoint": None,
    }


def original(vectors):
    """What the first implementation of textual inversion saves."""
    parameters = torch.nn.ParameterDict({"*": torch.nn.Parameter(vectors)})
    return {"string_to_token": {"*": torch.tensor(265)}, "string_to_param": parameters}


# Ending -> what is saved, and how
FORMS = {
    "web-ui.pt": lambda vectors, path: torch.save(web_ui(vectors), path),
    "web-ui-trained.pt": lambda vectors, path: torch.save(web_ui(vectors.clone().requires_grad_()), path),
    "web-ui-legacy.pt": lambda vectors, path: torch.save(web_ui(vectors), path, _use_new_zipfile_serialization=False),
    "original.pt": lambda vectors, path: torch.save(original(vectors), path),
    "diffusers.bin": lambda vectors, path: torch.save({"<mine>": vectors}, path),
    "web-ui.safetensors": lambda vectors, path: save_file({"emb_params": vectors}, path),
    "diffusers.safetensors": lambda vectors, path: save_file({"<mine>": vectors}, path),
}


def import_encoder(checkpoint, embeddings=(), **options):
    import_part(checkpoint, [], embeddings, component=ENCODER.name, **options)


@pytest.mark.parametrize("form", FORMS)
def test_vectors_are_read_from_every_form(form, tmp_path):
    FORMS[form](VECTORS["easynegative"], tmp_path / form)

    assert torch.equal(read_embedding(tmp_path / form), VECTORS["easynegative"])


def test_a_single_vector_may_be_without_an_axis_of_its_own(tmp_path):
    save_file({"<mine>": VECTORS["mine"][0]}, tmp_path / "mine.safetensors")

    assert torch.equal(read_embedding(tmp_path / "mine.safetensors"), VECTORS["mine"])


class Payload:
    """Runs a command when it is unpickled by who runs code from files."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_code_in_a_file_is_not_run_and_named(tmp_path):
    for number, legacy in enumerate([False, True]):
        path = tmp_path / f"{number}.pt"
        content = {"string_to_param": {"*": Payload(tmp_path / "run")}}
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(EmbeddingError, match=r"asks for \w+\.system, which axbake did not run"):
            read_embedding(path)

    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "content", [b"", b"xx", b"\x80\x02.", b"PK\x03\x04 cut off", b"\x80\x02}q\x00(X\xff\xff\xff\x7f"]
)
@pytest.mark.parametrize("ending", ["pt", "bin", "safetensors"])
def test_a_file_that_is_damaged_is_refused(content, ending, tmp_path):
    path = tmp_path / f"bad.{ending}"
    path.write_bytes(content)

    with pytest.raises(EmbeddingError, match=re.escape(str(path))):
        read_embedding(path)


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"clip_g": torch.zeros(2, 1280), "clip_l": torch.zeros(2, 768)}, "for Stable Diffusion XL"),
        ({"a": torch.zeros(2, 4), "b": torch.zeros(2, 4)}, "holds a, b; wanted a textual-inversion embedding"),
        ({"emb_params": torch.zeros(1, 2, 4)}, "holds emb_params; wanted"),
        ({}, "holds no tensors by name; wanted"),
    ],
)
def test_what_is_no_embedding_is_refused(tensors, said, tmp_path):
    save_file(tensors, tmp_path / "other.safetensors")

    with pytest.raises(EmbeddingError, match=said):
        read_embedding(tmp_path / "other.safetensors")


@pytest.mark.parametrize(
    ("shape", "said"),
    [
        ((2, 1024), "vectors of 1024 numbers, for Stable Diffusion 2.x; the model's text encoder takes 32"),
        ((2, 33), "vectors of 33 numbers; the model's text encoder takes 32"),
        ((76, tiny.WIDTH), "76 vectors; a prompt's chunk holds 75"),
    ],
)
def test_an_embedding_that_the_text_encoder_cannot_take_is_refused(model, shape, said, tmp_path):
    save_file({"emb_params": torch.zeros(shape)}, tmp_path / "wide.safetensors")

    with pytest.raises(EmbeddingError, match=said):
        import_encoder(model.checkpoint, [tmp_path / "wide.safetensors"], weights=tmp_path / "weights.safetensors")


def test_without_embeddings_and_skip_the_bytes_are_the_plain_imports(model, tmp_path):
    plain = {"component": as_files(ENCODER), "family": SD1.name, "latents": SD1.latents}
    import_component(model.checkpoint, **plain, weights=tmp_path / "plain.safetensors")
    import_encoder(model.checkpoint, weights=tmp_path / "ours.safetensors")

    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "plain.safetensors").read_bytes()


@pytest.fixture(scope="module")
def with_embeddings(model, tmp_path_factory):
    """weights.safetensors and embeddings.json of the tiny model with all of `VECTORS`."""
    directory = tmp_path_factory.mktemp("embeddings")
    paths = [directory / f"{name}.pt" for name in VECTORS]
    for path, vectors in zip(paths, VECTORS.values(), strict=True):
        torch.save(web_ui(vectors), path)
    import_encoder(model.checkpoint, paths, weights=directory / "weights.safetensors")
    list_embeddings(
        [directory / "weights.safetensors"],
        paths,
        names=list(VECTORS),
        encoders=[""],
        listing=directory / "embeddings.json",
    )
    return directory


def test_vectors_are_rows_of_the_token_table_under_the_listed_ids(model, with_embeddings):
    listing = json.loads((with_embeddings / "embeddings.json").read_text())
    ids = listing["embeddings"]
    table = read_tensor(with_embeddings / "weights.safetensors", TABLE)
    plain = read_tensor(model.weights["text_encoder"], TABLE)

    assert listing["pad_token_id"] == model.networks.pad_token_id
    assert ids == {"easynegative": [*range(49408, 49416)], "mine": [49416], "neg_v1": [49417, 49418, 49419]}
    assert table.dtype == plain.dtype and torch.equal(table[:49408], plain) and len(table) == 49420
    for name, vectors in VECTORS.items():
        assert torch.equal(table[ids[name]], vectors.to(table.dtype))
    assert read_description(with_embeddings / "weights.safetensors").config["vocab_size"] == 49420


def in_torch(network, prefix, vectors, suffix):
    """The last hidden state of *network* with *vectors* in the place of words, without a table that has them."""
    words = [49406, *prefix, *[0] * len(vectors), *suffix]
    ids = torch.tensor([words + [49407] * (77 - len(words))])
    embedded = network.embeddings.token_embedding(ids)
    embedded[0, 1 + len(prefix) : 1 + len(prefix) + len(vectors)] = vectors
    with torch.inference_mode():
        embedded = embedded + network.embeddings.position_embedding(torch.arange(77))[None]
        mask = torch.triu(torch.full((77, 77), torch.finfo(torch.float32).min), 1)[None, None]
        hidden = network.encoder(inputs_embeds=embedded, attention_mask=mask).last_hidden_state
        return network.final_layer_norm(hidden).numpy()


@pytest.fixture(scope="module")
def graph(with_embeddings):
    """The text encoder's graph, exported."""
    return export_part(with_embeddings / "weights.safetensors", with_embeddings / "text_encoder.onnx")


def test_embeddings_have_their_effect_in_torch_and_in_the_graph(model, with_embeddings, graph):
    tokenizer = load_tokenizer(with_embeddings / "embeddings.json")
    vectors = VECTORS["easynegative"].to(model.networks.dtype).float()
    wanted = in_torch(load(model.weights["text_encoder"], ENCODER.build), [320], vectors, [267, 2368])  # a …, cat

    encode = text_encoding(with_embeddings / "weights.safetensors", ENCODER.build, ENCODER.states)
    found = embed_prompt([encode], tokenizer, "a easynegative, cat", chunks=1).tokens
    (chunk,) = chunk_prompt("a EasyNegative, cat", tokenizer)
    run = open_model(graph).run({"input_ids": chunk.ids})["last_hidden_state"]

    assert psnr(wanted, found) > 80
    assert psnr(wanted, run) > 80


def test_the_graph_with_embeddings_computes_what_torch_does(with_embeddings, graph):
    measure_parity(
        with_embeddings / "weights.safetensors",
        [graph],
        [tensors_of(graph)],
        component=ENCODER.name,
        build=ENCODER.build,
        pieces=ENCODER.graphs,
        example=ENCODER.example,
        columns={},
        parity=with_embeddings / "parity.json",
    )

    assert json.loads((with_embeddings / "parity.json").read_text())["psnr_db"] > 80


def test_a_clip_skip_of_stable_diffusion_2_is_refused(tmp_path):
    checkpoint = tiny.save(tiny.sd2(), tmp_path / "sd2.safetensors")

    with pytest.raises(
        ClipSkipError, match=r"clip_skip: 2, wanted 1: .* Stable Diffusion 2\.x always ends before its last"
    ):
        import_encoder(checkpoint, clip_skip=2, weights=tmp_path / "weights.safetensors")


def test_clip_skip_is_the_hidden_state_before_the_last_layers_normed(model, tmp_path):
    weights, graph = tmp_path / "weights.safetensors", tmp_path / "text_encoder.onnx"
    import_encoder(model.checkpoint, clip_skip=2, weights=weights)
    export_part(weights, graph)

    ids = np.random.default_rng(0).integers(0, 49408, (1, 77))
    full = load(model.weights["text_encoder"], ENCODER.build)
    with torch.inference_mode():
        states = full(torch.from_numpy(ids), output_hidden_states=True).hidden_states
        wanted = full.final_layer_norm(
            states[-2]
        ).numpy()  # as `hidden_states[-CLIP_stop_at_last_layers]` in the web UI
    (run,) = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"]).run(None, {"input_ids": ids})
    assert np.array_equal(text_encoding(weights, ENCODER.build, ENCODER.states)(ids).hidden, wanted)
    assert psnr(wanted, run) > 80
    assert psnr(wanted, text_encoding(model.weights["text_encoder"], ENCODER.build, ENCODER.states)(ids).hidden) < 40


def test_a_clip_skip_that_leaves_no_layer_is_refused(model, tmp_path):
    with pytest.raises(ClipSkipError, match=r"clip_skip: 3 leaves out 2 layers of 2"):
        import_encoder(model.checkpoint, clip_skip=3, weights=tmp_path / "weights.safetensors")
