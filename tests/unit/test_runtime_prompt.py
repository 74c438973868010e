"""Prompts mean what they mean in AUTOMATIC1111's web UI."""

import random
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import CLIPTokenizer

from axbake.drawing.prompts import text_encoding
from axbake.runtime.errors import BundleError
from axbake.runtime.prompt import (
    BREAK,
    MOST,
    WELL_KNOWN,
    States,
    chunk_prompt,
    cut_off,
    embed_prompt,
    parse_attention,
    prompt_warnings,
)
from axbake.runtime.tokenizer import ClipTokenizer
from axbake.runtime.values import Conditioning
from axbake.weights.networks import load

CLIP = Path(__file__).parents[2] / "resources" / "clip"
START, END, COMMA = 49406, 49407, 267
EMBEDDINGS = {"easynegative": range(49408, 49416), "ng_deepnegative_v1_75t": range(49416, 49491)}

# The examples of the docstring of `parse_prompt_attention` in stable-diffusion-webui's modules/prompt_parser.py
DOCUMENTED = {
    "normal text": [("normal text", 1.0)],
    "an (important) word": [("an ", 1.0), ("important", 1.1), (" word", 1.0)],
    "(unbalanced": [("unbalanced", 1.1)],
    r"\(literal\]": [("(literal]", 1.0)],
    "(unnecessary)(parens)": [("unnecessaryparens", 1.1)],
    "a (((house:1.3)) [on] a (hill:0.5), sun, (((sky))).": [
        ("a ", 1.0),
        ("house", 1.5730000000000004),
        (" ", 1.1),
        ("on", 1.0),
        (" a ", 1.1),
        ("hill", 0.55),
        (", sun, ", 1.1),
        ("sky", 1.4641000000000006),
        (".", 1.1),
    ],
}
# What its list of accepted tokens and the wiki's «Features» page (Attention/emphasis) say, case by case
SAID = {
    "": [],
    "a (word)": [("a ", 1.0), ("word", 1.1)],
    "a ((word))": [("a ", 1.0), ("word", 1.1 * 1.1)],
    "a [word]": [("a ", 1.0), ("word", 1 / 1.1)],
    "a [[word]]": [("a ", 1.0), ("word", 1 / 1.1 / 1.1)],
    "a (word:1.5)": [("a ", 1.0), ("word", 1.5)],
    "a (word:0.25)": [("a ", 1.0), ("word", 0.25)],
    "a (word:.5)": [("a ", 1.0), ("word", 0.5)],
    "a (word:-1)": [("a ", 1.0), ("word", -1.0)],
    "a (word: 1.5 )": [("a ", 1.0), ("word", 1.5)],
    r"a \(word\)": [("a (word)", 1.0)],
    r"a \[word\]": [("a [word]", 1.0)],
    r"a \\ b": [("a \\ b", 1.0)],
    r"(a \(b\):1.3)": [("a (b)", 1.3)],
    "[unclosed": [("unclosed", 1 / 1.1)],
    "a) b] c": [("a) b] c", 1.0)],
    "a:1.3 b": [("a:1.3 b", 1.0)],
    "a:1.3) b": [("a:1.3) b", 1.0)],
    "(a:b)": [("a:b", 1.1)],
    "(a:1..3)": [("a:1..3", 1.1)],
    "[a:1.3]": [("a:1.3", 1 / 1.1)],  # a number counts in round brackets alone
    "(a [b)]": [("a ", 1.1), ("b", 1.0)],
    "((a:1.2), b:1.5)": [("a", 1.2 * 1.5), (", b", 1.5)],
    "()[]": [],
    r"car(\:2)go": [("car", 1.0), ("go", 1.0)],  # an empty text of another weight parts its neighbours too
    "breakfast (BREAKER)": [("breakfast ", 1.0), ("BREAKER", 1.1)],
}


@pytest.mark.parametrize("prompt", DOCUMENTED)
def test_weights_are_those_of_the_documented_examples(prompt):
    assert parse_attention(prompt) == [DOCUMENTED[prompt]]


@pytest.mark.parametrize("prompt", SAID)
def test_weights_are_what_the_documentation_says(prompt):
    (found,) = parse_attention(prompt)

    assert [text for text, _ in found] == [text for text, _ in SAID[prompt]]
    assert [weight for _, weight in found] == pytest.approx([weight for _, weight in SAID[prompt]], rel=1e-12)


@pytest.mark.parametrize(
    ("prompt", "sections"),
    [
        ("a cat BREAK a dog", [[("a cat", 1.0)], [("a dog", 1.0)]]),
        ("a cat\nBREAK\na dog", [[("a cat", 1.0)], [("a dog", 1.0)]]),
        ("a cat,BREAK,a dog", [[("a cat,", 1.0)], [(",a dog", 1.0)]]),
        ("(a) BREAK (b:2)", [[("a", 1.1)], [("b", 2.0)]]),
        ("(a BREAK b:2)", [[("a", 2.0)], [("b", 2.0)]]),
        ("BREAK a BREAK BREAK b BREAK", [[], [("a", 1.0)], [], [("b", 1.0)], []]),
        ("a break", [[("a break", 1.0)]]),
    ],
)
def test_break_parts_the_prompt(prompt, sections):
    assert parse_attention(prompt) == sections


@pytest.fixture(scope="module")
def tokenizer():
    return ClipTokenizer(CLIP, EMBEDDINGS)


@pytest.fixture(scope="module")
def theirs():
    return CLIPTokenizer.from_pretrained(CLIP, local_files_only=True)


def tokens(chunk):
    """Ids of a chunk without its start and the ends that fill it."""
    ids = chunk.ids[0].tolist()
    assert chunk.ids.shape == (1, 77) and chunk.ids.dtype == np.int64
    assert chunk.weights.shape == (77,) and chunk.weights.dtype == np.float32
    count = ids.index(END) - 1
    assert ids[0] == START and set(ids[count + 1 :]) == {END}
    assert chunk.weights[0] == 1 and (chunk.weights[count + 1 :] == 1).all()
    return ids[1 : count + 1]


@pytest.mark.parametrize("prompt", ["", "a photo of a cat", "A wizard's workshop, 8k!", "word " * 74, "word " * 75])
def test_a_plain_prompt_is_the_one_chunk_that_transformers_makes(prompt, tokenizer, theirs):
    (chunk,) = chunk_prompt(prompt, tokenizer)

    assert (chunk.weights == 1).all()
    wanted = theirs(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids
    assert np.array_equal(chunk.ids, wanted)


@pytest.mark.parametrize("prompt", ["", "a photo of a cat!", "word " * 75])
def test_chunks_are_filled_up_with_what_the_text_encoder_was_trained_with(prompt):
    theirs = CLIPTokenizer.from_pretrained(CLIP, local_files_only=True)
    theirs.pad_token = "!"  # as Stable Diffusion 2.x; set now, so that prompts' own «!» is none

    (chunk,) = chunk_prompt(prompt, ClipTokenizer(CLIP, pad_token_id=0))

    wanted = theirs(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids
    assert np.array_equal(chunk.ids, wanted)


def test_tokens_have_the_weights_of_their_texts(tokenizer):
    (chunk,) = chunk_prompt("a (photo of:1.3) [a] cat", tokenizer)

    assert tokens(chunk) == [320, 1125, 539, 320, 2368]
    assert chunk.weights[1:6] == pytest.approx([1, 1.3, 1.3, 1 / 1.1, 1])


# How many words and commas -> tokens of each chunk, by the rule of `tokenize_line`: a full chunk ends behind its last comma,
# if that stands among its last 20 tokens
BACKTRACKING = {
    "no comma": ("word " * 80, [75, 5]),
    "a comma 19 tokens before the end": ("word " * 55 + "," + "word " * 24, [56, 24]),
    "a comma 20 tokens before the end": ("word " * 54 + "," + "word " * 25, [75, 5]),
    "the last token is a comma": ("word " * 74 + "," + "word " * 5, [75, 5]),
    "a comma is the first token without room": ("word " * 75 + "," + "word " * 5, [75, 6]),
    "a comma in reach, but nothing that follows": ("word " * 60 + "," + "word " * 14, [75]),
    "commas in two chunks": ("word " * 70 + "," + "word " * 70 + "," + "word " * 10, [71, 71, 10]),
    "a comma of the chunk before does not count": ("word " * 74 + "," + "word " * 80, [75, 75, 5]),
    "what follows the last comma goes whole": ("word, " * 36 + "word word word word", [72, 4]),
}


@pytest.mark.parametrize("what", BACKTRACKING)
def test_a_full_chunk_ends_at_a_comma_that_is_near(what, tokenizer, theirs):
    prompt, sizes = BACKTRACKING[what]

    chunks = [tokens(chunk) for chunk in chunk_prompt(prompt, tokenizer)]

    assert [len(ids) for ids in chunks] == sizes
    assert [id for ids in chunks for id in ids] == theirs(prompt, add_special_tokens=False).input_ids


def test_weights_go_with_their_tokens_into_the_next_chunk(tokenizer):
    first, second = chunk_prompt("word " * 60 + "," + "(word " * 10 + ":1.5) " + "word " * 10, tokenizer)

    assert len(tokens(first)) == 61 and (first.weights == 1).all()
    assert second.weights[1] > 1 and len(tokens(second)) == 20


@pytest.mark.parametrize(
    ("prompt", "sizes"),
    [
        ("a cat BREAK a dog", [2, 2]),
        ("a cat BREAK BREAK a dog", [2, 0, 2]),
        ("BREAK a dog", [0, 2]),
        ("a cat BREAK", [2]),
        ("BREAK", [0]),
        ("word " * 80 + "BREAK a dog", [75, 5, 2]),
    ],
)
def test_break_ends_a_chunk(prompt, sizes, tokenizer):
    assert [len(tokens(chunk)) for chunk in chunk_prompt(prompt, tokenizer)] == sizes


def test_an_embedding_stands_for_its_name_with_its_weight_and_is_not_parted(tokenizer):
    (one,) = chunk_prompt("ugly, (EasyNegative:1.2), bad", tokenizer)
    many = chunk_prompt("easynegative,ng_deepnegative_v1_75t,(worst quality:2)", tokenizer)
    (marked,) = chunk_prompt("embedding:easynegative", tokenizer)

    assert tokens(one)[2:10] == list(EMBEDDINGS["easynegative"])
    assert one.weights[3:11] == pytest.approx([1.2] * 8) and one.weights[2] == one.weights[11] == 1
    assert [tokens(chunk)[:1] for chunk in many] == [[49408], [49416], [COMMA]]
    assert tokens(many[0]) == [*EMBEDDINGS["easynegative"], COMMA]
    assert tokens(many[1]) == list(EMBEDDINGS["ng_deepnegative_v1_75t"])
    assert tokens(marked) == list(EMBEDDINGS["easynegative"])


def test_marks_of_loras_are_no_words(tokenizer):
    (plain,), (marked,) = (
        chunk_prompt(text, tokenizer) for text in ("red background,", "red background,<lora:film:0.4>")
    )

    assert np.array_equal(plain.ids, marked.ids)


def test_what_is_cut_off_is_known(tokenizer):
    assert cut_off("a photo of a cat", tokenizer, chunks=1) == ""
    assert cut_off("word " * 75, tokenizer, chunks=1) == ""
    assert cut_off("WORD " * 75 + "(Café:1.2) and  more", tokenizer, chunks=1) == "Café and  more"
    assert cut_off("🙂 " + "word " * 73 + "kept lost", tokenizer, chunks=1) == "lost"
    assert cut_off("a cat BREAK a dog", tokenizer, chunks=1) == "a dog"
    assert cut_off("a cat BREAK a dog", tokenizer, chunks=2) == ""
    assert cut_off("word " * 60 + ", one two " + "word " * 20, tokenizer, chunks=1).startswith("one two word")


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("word " * 75 + "lost", "longer than 75 tokens (prompt_chunks: 1); this end of it is cut off: lost"),
        ("a cat <lora:film:0.4>", "<lora:film:0.4> is removed from the prompt: a compiled model has its LoRAs in its"),
        ("a cat <hypernet:film:0.4>", "<hypernet:film:0.4> is not applied"),
        (
            "blurry, badhandv4",
            "badhandv4 looks like an embedding, but the model does not have it (easynegative, ng_deep",
        ),
        ("(Bad-Hands-5:1.2)", "Bad-Hands-5 looks like an embedding"),
        ("embedding:mine", "mine looks like an embedding"),
        ("a [cat:dog:0.5]", "[cat:dog:0.5] is prompt editing"),
        ("a [cat:10]", "[cat:10] is prompt editing"),
        ("a [cat|dog]", "[cat|dog] is alternating words"),
        ("a cat AND a dog", "AND is a composition of prompts"),
    ],
)
def test_what_does_not_count_is_told(prompt, said, tokenizer):
    (warning,) = prompt_warnings(prompt, tokenizer, chunks=1)

    assert warning.startswith(said)


@pytest.mark.parametrize(
    "prompt",
    ["", "a cat and a dog", "easynegative, embedding:EasyNegative", "a [cat] (dog:1.3)", "easy negative, bad hands"],
)
def test_nothing_is_told_of_a_prompt_that_counts(prompt, tokenizer):
    assert prompt_warnings(prompt, tokenizer, chunks=1) == []


def test_well_known_names_are_found_as_they_stand():
    bare = ClipTokenizer(CLIP)

    for name in WELL_KNOWN:
        assert name == name.lower()
        assert len(prompt_warnings(f"({name.upper()}:1.1), blurry", bare, chunks=1)) == 1, name


@pytest.fixture(scope="module")
def encode(model):
    (encoder,) = model.family.text_encoders
    states = text_encoding(model.weights["text_encoder"], encoder.build, encoder.states)
    return lambda ids: states(ids).hidden


def told(encode):
    """*encode* as prompts are embedded with: it gives states."""
    return lambda ids: States(encode(ids))


def weighted_in_torch(model, ids, weights):
    """`EmphasisOriginal` of modules/sd_emphasis.py, written out in torch."""
    z = load(model.weights["text_encoder"], model.builds["text_encoder"])(torch.from_numpy(ids)).last_hidden_state
    weighted = z * torch.tensor(weights, dtype=torch.float32).reshape(1, 77, 1)
    return (weighted * (z.mean() / weighted.mean())).numpy()


def test_emphasis_multiplies_and_keeps_the_mean(model, encode, tokenizer, theirs):
    found = embed_prompt([told(encode)], tokenizer, "a (red:1.4) cat, [blurry]", chunks=1).tokens

    ids = theirs("a red cat, blurry", padding="max_length", max_length=77, return_tensors="np").input_ids
    wanted = weighted_in_torch(model, ids, [1, 1, 1.4, 1, 1, 1 / 1.1] + [1] * 71)
    assert found.shape == (1, 77, encode(ids).shape[2]) and found.dtype == np.float32
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    assert found.mean() == pytest.approx(encode(ids).mean(), rel=1e-4)
    assert np.abs(found - encode(ids)).max() > 0.01


def test_a_prompt_without_weights_is_the_text_encoders_output_to_the_bit(encode, tokenizer, theirs):
    ids = theirs("a cat", padding="max_length", max_length=77, return_tensors="np").input_ids

    assert np.array_equal(embed_prompt([told(encode)], tokenizer, "a cat", chunks=1).tokens, encode(ids))


def test_chunks_stand_behind_one_another_each_with_its_own_mean(model, encode, tokenizer, theirs):
    found = embed_prompt([told(encode)], tokenizer, "a cat BREAK (a dog:1.5)", chunks=3).tokens

    cat, dog, empty = (
        theirs(text, padding="max_length", max_length=77, return_tensors="np").input_ids
        for text in ("a cat", "a dog", "")
    )
    wanted = [encode(cat), weighted_in_torch(model, dog, [1, 1.5, 1.5] + [1] * 74), encode(empty)]
    assert found.shape[1] == 3 * 77
    assert np.abs(found - np.concatenate(wanted, axis=1)).max() < 1e-5 * np.abs(found).max()


@pytest.fixture(scope="module")
def other(encode):
    """A second text encoder, of another width and other numbers."""
    return lambda ids: (1 - 3 * encode(ids)[:, :, :5]).astype(np.float32)


BOTH = Conditioning(("text_encoder", "text_encoder_2"))


def test_each_of_two_text_encoders_is_weighted_by_itself_and_keeps_its_own_mean(encode, other, tokenizer, theirs):
    prompt = "a (red:1.4) cat, [blurry] BREAK (a dog:1.5)"

    found = embed_prompt([told(encode), told(other)], tokenizer, prompt, chunks=2, conditioning=BOTH).tokens

    rows = []
    for text, weights in (("a red cat, blurry", [1, 1, 1.4, 1, 1, 1 / 1.1]), ("a dog", [1, 1.5, 1.5])):
        ids = theirs(text, padding="max_length", max_length=77, return_tensors="np").input_ids
        multipliers = torch.ones(77)
        multipliers[: len(weights)] = torch.tensor(weights)
        states = []
        for encoder in (
            encode,
            other,
        ):  # as `EmphasisOriginal` for each embedder, which `GeneralConditioner` then joins
            z = torch.from_numpy(encoder(ids))
            weighted = z * multipliers.reshape(1, 77, 1)
            states.append(weighted * (z.mean() / weighted.mean()))
        rows.append(torch.cat(states, 2))
    wanted = torch.hstack(rows).numpy()
    width = encode(ids).shape[2]
    assert found.shape == (1, 154, width + 5) and found.dtype == np.float32
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    for columns, encoder in ((slice(0, width), encode), (slice(width, None), other)):
        assert np.array_equal(found[:, :, columns], embed_prompt([told(encoder)], tokenizer, prompt, chunks=2).tokens)


def test_several_text_encoders_without_a_conditioning_are_refused(encode, other, tokenizer):
    with pytest.raises(BundleError, match="2 text encoders without a conditioning; wanted one that says how they are"):
        embed_prompt([told(encode), told(other)], tokenizer, "a cat", chunks=1)
    with pytest.raises(BundleError, match="0 text encoders"):
        embed_prompt([], tokenizer, "a cat", chunks=1)
    with pytest.raises(BundleError, match="1 text encoders; wanted those of text_encoder, text_encoder_2"):
        embed_prompt([told(encode)], tokenizer, "a cat", chunks=1, conditioning=BOTH)


def test_a_prompt_of_more_chunks_is_cut_off(encode, tokenizer):
    both, one = (
        embed_prompt([told(encode)], tokenizer, "a cat BREAK a dog", chunks=chunks).tokens for chunks in (2, 1)
    )

    assert np.array_equal(one, both[:, :77])


@pytest.mark.parametrize(
    "prompt",
    [
        "embedding:easynegative.safetensors",
        "embedding:negative/easynegative.pt",
        r"embedding:negative\sd1/EasyNegative",
        "Embedding:easynegative.bin",
    ],
)
def test_comfyuis_folders_and_endings_are_no_part_of_an_embeddings_name(prompt, tokenizer):
    (chunk,) = chunk_prompt(f"({prompt}:1.2), bad", tokenizer)
    (plain,) = chunk_prompt("(easynegative:1.2), bad", tokenizer)

    assert tokens(chunk) == tokens(plain) and (chunk.weights == plain.weights).all()
    assert prompt_warnings(prompt, tokenizer, chunks=1) == []


@pytest.mark.parametrize("part", ["<lora:", "[a:", "{a|", "__a", "(a:1.1)", "\\", " ", "[", "a, ", "embedding:a/"])
def test_the_longest_prompt_is_read_in_a_moment(part, tokenizer):
    prompt = (part * MOST)[:MOST]

    began = time.process_time()
    prompt_warnings(prompt, tokenizer, chunks=4)
    assert time.process_time() - began < 5  # s; 36 when the work grew with the square of the length


def test_breaks_are_found_where_whitespace_is_around_them_or_not():
    draw = random.Random(1)
    for _ in range(2000):
        text = "".join(draw.choice(["BREAK", " ", "\t", "a", ",", "\n"]) for _ in range(draw.randrange(12)))
        assert BREAK.split(text) == re.split(r"\s*\bBREAK\b\s*", text), text
