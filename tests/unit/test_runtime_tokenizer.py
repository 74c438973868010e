"""Prompts become the ids that transformers gives, and `resources/clip` is CLIP's vocabulary."""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from axbake.runtime.errors import BundleError
from axbake.runtime.tokenizer import ClipTokenizer

CLIP = Path(__file__).parents[2] / "resources" / "clip"

PROMPTS = [
    "",
    " ",
    "a photo of a cat",
    "A Photo OF a CAT, 8k, masterpiece!!! (best quality:1.2)",
    "it's they're we've I'm you'll she'd don't O'REILLY'S",
    "12345 3.14159 1girl 2boys ½ ² Ⅳ ٣",
    "  many\t\twhite \n\n spaces\u00a0and\u3000more\u200b ",
    "café naïve Zürich ÅNGSTRÖM straße İstanbul",
    "cafe\u0301 A\u030angstro\u0308m",
    "北京的春天 東京タワー 서울 Москва Αθήνα القاهرة दिल्ली",
    "🙂 👩\u200d👩\u200d👧 🇩🇪 ❤️ 🦄🌈",
    "<|endoftext|>",
    "before <|endoftext|> after<|startoftext|>",
    "<|ENDOFTEXT|> <|StartOfText|>",
    "&lt;b&gt;bold&lt;/b&gt; &amp; <div class='x'>html</div> &#39;",
    "snake_case kebab-case path/to/file C:\\dir __init__ a+b=c",
    "«quotes» “curly” ‘single’ — dash … ™ © €",
    "\x00\x01\x7f control \ufeff bom",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
    "word " * 74,
    "word " * 75,
    "word " * 76,
    "word " * 200,
    " ".join(f"thing{n}," for n in range(200)),
    "🦄" * 100,
    "<|endoftext|>" * 100,
]


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(CLIP)


@pytest.mark.parametrize("reference", ["classes", "folder"])
@pytest.mark.parametrize("prompt", PROMPTS, ids=lambda prompt: ascii(prompt[:24]))
def test_ids_are_those_of_transformers(tokenizer, prompt, reference):
    if reference == "folder":
        theirs = CLIPTokenizer.from_pretrained(CLIP, local_files_only=True)
    else:
        files = {"vocab": str(CLIP / "vocab.json"), "merges": str(CLIP / "merges.txt")}
        theirs = CLIPTokenizer(**files, model_max_length=77)
    expected = theirs(prompt, padding="max_length", truncation=True, return_tensors="np").input_ids

    ids = tokenizer.encode(prompt)

    assert ids.shape == (1, 77) and ids.dtype == np.int64
    assert ids.tolist() == expected.tolist()


def test_known_ids(tokenizer):
    ids = tokenizer.encode("a photo of a cat")[0].tolist()

    assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
    assert set(ids[7:]) == {49407}


def test_what_is_cut_off_is_known(tokenizer):
    assert tokenizer.cut_off("a photo of a cat") == ""
    assert tokenizer.cut_off("word " * 75) == ""
    assert tokenizer.cut_off("WORD " * 75 + "Café and  more") == "Café and  more"
    prompt = "🙂 " + "word " * 73 + "kept lost"
    assert tokenizer.cut_off(prompt) == "lost"


def test_the_vocabulary_is_clips():
    vocab = json.loads((CLIP / "vocab.json").read_text(encoding="utf-8"))
    version, *merges = (CLIP / "merges.txt").read_text(encoding="utf-8").splitlines()

    assert version == "#version: 0.2"
    assert len(merges) == 48894 and merges[:2] == ["i n", "t h"]
    assert sorted(vocab.values()) == list(range(49408))
    assert vocab["cat</w>"] == 2368 and vocab["<|startoftext|>"] == 49406 and vocab["<|endoftext|>"] == 49407


def test_a_folder_without_the_files_is_an_error_that_names_both(tmp_path):
    with pytest.raises(BundleError, match=r"no vocab\.json and no merges\.txt"):
        ClipTokenizer(tmp_path)
