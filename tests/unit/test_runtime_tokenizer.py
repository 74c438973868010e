"""Prompts become the ids that transformers gives, and `resources/clip` is CLIP's vocabulary."""

import json
from pathlib import Path

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
        theirs = CLIPTokenizer(**files)

    words = tokenizer.words(prompt)

    assert [id for ids, _ in words for id in ids] == theirs(prompt, add_special_tokens=False).input_ids


def test_known_ids(tokenizer):
    assert [ids for ids, _ in tokenizer.words("a photo of a cat")] == [(320,), (1125,), (539,), (320,), (2368,)]
    assert (tokenizer.start, tokenizer.end, tokenizer.comma) == (49406, 49407, 267)


def test_words_know_where_they_stand(tokenizer):
    text = "🙂 CAFÉ,  white \n space"

    assert [text[place:].split()[0] for _, place in tokenizer.words(text)] == ["🙂", "CAFÉ,", ",", "white", "space"]


def test_names_of_embeddings_are_their_ids_in_any_letters_and_the_longest_first():
    tokenizer = ClipTokenizer(CLIP, {"bad": [1], "bad-hands-5": [2, 3], "ng_deepnegative_v1_75t": [4, 5, 6]})

    ((badly, _),) = tokenizer.words("badly")
    text = "BAD, Bad-Hands-5,ng_deepnegative_v1_75T badly"
    assert [ids for ids, _ in tokenizer.words(text)] == [(1,), (267,), (2, 3), (267,), (4, 5, 6), badly]
    assert [place for _, place in tokenizer.words(text)] == [0, 3, 5, 16, 17, 40]


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
