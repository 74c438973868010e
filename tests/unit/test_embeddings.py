"""Files of embeddings are read by their content, fenced as checkpoints are; numbers that no token table can hold are refused."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file

from axbake.checkpoints.embeddings import EmbeddingError, read_embedding
from axbake.weights.embeddings import list_embeddings
from tests import loras, tiny
from tests.unit.conftest import import_part

VECTORS = torch.arange(2.0 * tiny.WIDTH).reshape(2, -1)


def test_content_decides_and_not_the_name(tmp_path):
    save_file({"emb_params": VECTORS}, tmp_path / "a.safetensors")
    torch.save({"string_to_param": {"*": VECTORS}}, tmp_path / "b.pt")
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "a.pt")
    shutil.copy(tmp_path / "b.pt", tmp_path / "b.safetensors")

    for name in ("a.safetensors", "a.pt", "b.pt", "b.safetensors"):
        assert torch.equal(read_embedding(tmp_path / name), VECTORS), name


#: What no token table can hold -> vectors, and words of the refusal
REFUSED = {
    "NaN": (VECTORS.clone().index_fill_(0, torch.tensor([1]), float("nan")), "not finite"),
    "infinite": (VECTORS.clone().index_fill_(0, torch.tensor([1]), float("-inf")), "not finite"),
    "huge": (torch.full((2, 8), 1e38), "beyond 65504"),
    "integers": (torch.ones((2, 8), dtype=torch.int64), "is of type I64, wanted"),
    "booleans": (torch.ones((2, 8), dtype=torch.bool), "is of type BOOL, wanted"),
    "complex": (torch.ones((2, 8), dtype=torch.complex64), "C64|complex64"),
    "no vectors": (torch.ones((0, 8)), r"Its shape is \[0, 8\]"),
    "a number": (torch.ones(()), r"Its shape is \[\]"),
    "too many": (torch.ones((4, 3_000_000), dtype=torch.float16), r"Its shape is \[4, 3000000\]"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_no_token_table_can_hold_is_refused(what, tmp_path):
    path, (vectors, said) = tmp_path / "word.safetensors", REFUSED[what]
    save_file({"emb_params": vectors}, path)

    with pytest.raises(EmbeddingError, match=said) as raised:
        read_embedding(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("what", ["infinite", "booleans", "complex"])
def test_the_same_is_refused_in_a_pickle(what, tmp_path):
    path, (vectors, said) = tmp_path / "word.pt", REFUSED[what]
    torch.save({"string_to_param": {"*": vectors}}, path)

    with pytest.raises(EmbeddingError, match=said) as raised:
        read_embedding(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_type_of_weights_is_taken(dtype, tmp_path):
    save_file({"emb_params": VECTORS.to(dtype)}, tmp_path / "word.safetensors")

    assert torch.equal(read_embedding(tmp_path / "word.safetensors"), VECTORS.to(dtype))


@pytest.fixture
def weights(tmp_path):
    checkpoint = tiny.save(tiny.sd1(), tmp_path / "sd1.safetensors")
    import_part(checkpoint, component="text_encoder", weights=tmp_path / "text_encoder.safetensors")
    return tmp_path / "text_encoder.safetensors"


def test_embeddings_that_a_lora_brings_along_have_their_own_names(weights, tmp_path):
    other = VECTORS[:1] + 100
    bundle = {"bundle_emb.ohwx.string_to_param.*": VECTORS, "bundle_emb.zwx.emb_params": other}
    path = loras.save(
        loras.kohya(loras.pairs(tiny.sd1(torch.float32), ("unet",))) | bundle, tmp_path / "lora.safetensors"
    )
    save_file({"emb_params": VECTORS}, tmp_path / "neg.safetensors")

    assert torch.equal(read_embedding(path), torch.cat([VECTORS, other]))
    list_embeddings(
        [weights],
        [tmp_path / "neg.safetensors", path],
        names=["neg", "lora"],
        encoders=[""],
        listing=tmp_path / "embeddings.json",
    )
    ids = json.loads((tmp_path / "embeddings.json").read_text())["embeddings"]
    assert ids == {"neg": [49408, 49409], "ohwx": [49410, 49411], "zwx": [49412]}


def test_two_embeddings_of_one_name_are_refused(weights, tmp_path):
    save_file({"bundle_emb.Neg.emb_params": VECTORS}, tmp_path / "lora.safetensors")
    save_file({"emb_params": VECTORS}, tmp_path / "neg.safetensors")
    paths = [tmp_path / "neg.safetensors", tmp_path / "lora.safetensors"]

    with pytest.raises(EmbeddingError, match="another embedding with the name Neg"):
        list_embeddings([weights], paths, names=["neg", "lora"], encoders=[""], listing=tmp_path / "embeddings.json")
