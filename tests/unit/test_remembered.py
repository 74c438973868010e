"""Prompts are remembered on the board: text encoders are loaded for new ones alone."""

import json
import os

import numpy as np
import pytest

from axbake.drawing.prompts import load_tokenizer
from axbake.runtime import remembered as module
from axbake.runtime.language import LanguageFormat, listed
from axbake.runtime.model import Postponed, Session
from axbake.runtime.prompt import Embedded
from axbake.runtime.remembered import Remembered
from axbake.runtime.txt2img import embed_prompts
from axbake.runtime.values import Conditioning
from tests import tiny_flux2

HOW = {"negative": False, "chunks": 1}


def embedded(value, *, mask=True):
    tokens = np.full((1, 8, 4), value, np.float32)
    return Embedded(tokens, mask=np.ones((1, 8), np.float32) if mask else None)


def test_an_encoding_comes_back_as_it_was_and_for_nothing_else(tmp_path):
    kept = Remembered(tmp_path, made_by=["a", "b"])

    kept.keep(embedded(1), "a rocket", **HOW)
    kept.keep(embedded(2, mask=False), "a rocket", negative=True, chunks=1)

    found = kept.get("a rocket", **HOW)
    assert np.array_equal(found.tokens, embedded(1).tokens) and np.array_equal(found.mask, embedded(1).mask)
    assert kept.get("a rocket", negative=True, chunks=1).mask is None
    assert kept.get("a rocket", negative=False, chunks=2) is kept.get("a pizza", **HOW) is None
    assert Remembered(tmp_path, made_by=["a", "c"]).get("a rocket", **HOW) is None  # other models


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY"])
def test_a_damaged_file_counts_as_none(content, tmp_path):
    kept = Remembered(tmp_path, made_by=[])
    kept.keep(embedded(1), "a rocket", **HOW)
    (path,) = kept.folder.iterdir()

    path.write_bytes(content)

    assert kept.get("a rocket", **HOW) is None
    kept.keep(embedded(1), "a rocket", **HOW)
    assert kept.get("a rocket", **HOW) is not None


def test_the_oldest_leave_and_a_folder_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    kept = Remembered(tmp_path, made_by=[])
    kept.keep(embedded(1), "first", **HOW)
    (path,) = kept.folder.iterdir()
    os.utime(path, (0, 0))
    monkeypatch.setattr(module, "MOST_BYTES", path.stat().st_size + 10)

    kept.keep(embedded(2), "second", **HOW)

    assert kept.get("first", **HOW) is None and kept.get("second", **HOW) is not None
    (tmp_path / "file").write_text("no folder")
    Remembered(tmp_path / "file", made_by=[]).keep(embedded(1), "first", **HOW)


def test_a_text_encoder_is_loaded_for_a_new_prompt_and_leaves_memory_again(tmp_path):
    form = LanguageFormat("{prompt}", tokens=8, pad="<|endoftext|>")
    language = listed({"text_encoder": tiny_flux2.tokenizer().to_str()}, {"text_encoder": form})
    (tmp_path / "embeddings.json").write_text(json.dumps({"embeddings": {}, "language": language}))
    tokenizer = load_tokenizer(tmp_path / "embeddings.json")
    loads = []

    def opener():
        loads.append(1)
        shapes = {name: ((1, 8), np.dtype(np.int64)) for name in ("input_ids", "attention_mask")}
        outputs = {"prompt_embeds": ((1, 8, 1), np.dtype(np.float32))}
        return Session("t", shapes, outputs, lambda feed: [feed["input_ids"][..., None].astype(np.float32)])

    def embed(texts, kept):
        session = Postponed("text_encoder", opener)
        how = {"chunks": 1, "conditioning": Conditioning(("text_encoder",)), "remembered": kept}
        found = embed_prompts([session], tokenizer, texts, **how)
        assert session._opened is None
        return [one.tokens for one in found], len(session.seconds)

    kept = Remembered(tmp_path, made_by=[])
    first, runs = embed(["a", "b"], kept)
    again, none = embed(["a", "b"], kept)
    _, one = embed(["a", "c"], kept)

    assert (runs, none, one, len(loads)) == (2, 0, 1, 2)
    assert all(np.array_equal(*pair) for pair in zip(first, again, strict=True))
    assert embed(["a", "b"], None)[1] == 2
