"""What has no effect is reported, one sentence for each: prompts, embeddings, LoRAs, words that a checkpoint adds."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from axbake.loras.rows import PROMPTS
from axbake.runtime.prompt import prompt_warnings
from axbake.runtime.tokenizer import ClipTokenizer
from tests import loras, tiny
from tests.unit.conftest import CLIP
from tests.unit.test_fit import TOKENS, saved, with_embedding
from tests.unit.test_model import model_of


@pytest.fixture(autouse=True)
def directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tensors():
    return tiny.single_file_tensors(tiny.small_sd1())


@pytest.mark.parametrize(
    ("written", "what"),
    [
        ("[cat:dog:0.5]", "prompt editing"),
        ("[[cat:dog:0.5] in:on:0.7]", "prompt editing"),
        ("[cat|dog]", "alternating words"),
        ("cat AND dog", "a composition of prompts"),
        ("a __colour__ cat", "a wildcard"),
        ("a __animals/wild*__", "a wildcard"),
        ("{cat|dog}", "a choice of words"),
        ("{{masterpiece}}", "a weight in NovelAI's syntax"),
        ("（a cat：1.2）", "in full-width brackets"),
        ("(a cat)++", "a weight in Compel's syntax"),
        ("cat::2 dog", "a parameter of Midjourney's"),
        ("a cat --ar 16:9", "a parameter of Midjourney's"),
        ("<hypernet:film:0.5> cat", "is not applied"),
    ],
)
def test_syntax_of_other_tools_is_named(written, what):
    said = prompt_warnings(written, ClipTokenizer(CLIP), chunks=1)

    assert [sentence for sentence in said if what in sentence]


@pytest.mark.parametrize(
    "written", ["a (cat:1.2), [dog] BREAK ((rain)) \\(x\\)", "C++, 50mm f/1.8, close-up -- night", "3:2"]
)
def test_what_web_uis_read_is_not(written):
    assert prompt_warnings(written, ClipTokenizer(CLIP), chunks=2) == []


@pytest.mark.parametrize("column", PROMPTS)
def test_it_is_told_of_each_column_before_a_job_runs(column, tensors):
    saved(tensors)

    (said,) = model_of(**{column: "a {red|blue} rocket"}).advice

    assert (
        said
        == f"column {column}: {{red|blue}} is a choice of words, which axbake does not support: it is read as words"
    )


def test_a_calibration_prompt_is_named_and_many_are_counted(tensors, monkeypatch):
    saved(tensors)
    model = model_of()
    model.row["calibration_prompts"] = [f"__{number}__" for number in range(20)]

    *sentences, more = model.advice

    assert sentences[0].startswith("calibration prompt “__0__”: __0__ is a wildcard")
    assert (len(sentences), more) == (8, "calibration prompts: 12 more such findings; see the jobs' logs")


def test_an_embedding_that_no_prompt_names_is_told_whatever_names_it(tensors):
    with_embedding("night-sky.safetensors", torch.ones(2, tiny.WIDTH))(tensors)
    cells = {"embeddings": "night-sky.safetensors"}

    assert model_of(**cells).advice == ["column embeddings: no prompt names night-sky, so they have no effect"]
    for told in ({"prompt": "(Night-Sky:1.2)"}, {"negative_prompt": "embedding:sky/night-sky.safetensors, rain"}):
        assert model_of(**cells, **told).advice == []


def test_words_that_a_checkpoint_adds_to_clips_are_told(tensors):
    saved(tensors | {TOKENS: torch.cat([tensors[TOKENS], tensors[TOKENS][:2]])})
    (said,) = model_of().advice
    assert said.startswith(
        "tiny.safetensors: its text_encoder has 2 more words than CLIP's vocabulary; prompts cannot use them."
    )

    folder = tiny.save_folder(tiny.small_sd1(), Path("model"))
    (folder / "tokenizer" / "added_tokens.json").write_text(json.dumps({"<cat-toy>": 49408}))
    (said,) = model_of(checkpoint="model").advice
    assert said.startswith("model adds words to CLIP's vocabulary: <cat-toy>. axbake does not know them in prompts")


def test_modules_that_the_checkpoint_lacks_are_told_and_the_others_count(tensors):
    saved(tensors)
    made = loras.kohya(loras.pairs(tiny.small_sd1()))
    lacking = {name.replace("down_blocks_0_attentions_0", "down_blocks_3_attentions_1"): t for name, t in made.items()}
    loras.save(made | lacking, Path("style.safetensors"))

    (said,) = model_of(loras="style.safetensors:1").advice

    count = len(loras.MODULES["unet"])
    gone = sum(module.startswith(loras.FIRST) for module in loras.MODULES["unet"])
    assert said.startswith(
        f"style.safetensors: {gone} of the {count + gone} modules that it changes are not in the checkpoint's unet"
    )


def test_embeddings_that_a_lora_brings_along_are_told(tensors):
    saved(tensors)
    made = loras.kohya(loras.pairs(tiny.small_sd1(), ("unet",)))
    save_file(made | {"bundle_emb.mist.string_to_param.*": torch.ones(1, tiny.WIDTH)}, "style.safetensors")

    (said,) = model_of(loras="style.safetensors:1").advice
    assert said.startswith(
        "style.safetensors also contains the embeddings mist. To use them in prompts, name this file in the column "
        "embeddings"
    )

    cells = {"loras": "style.safetensors:1", "embeddings": "style.safetensors"}
    assert model_of(**cells, prompt="mist").advice == []


def test_sizes_are_of_no_effect_where_a_model_is_told_none(tensors):
    saved(tensors)

    (said,) = model_of(original_size="1024x1024", crop="16,8").advice

    assert said == "column original_size, crop: Stable Diffusion 1.x takes no sizes, so this has no effect"


@pytest.mark.parametrize("name", ["noobai-vpred-1.0.safetensors", "mix_V-Pred.safetensors", "mixVPred.safetensors"])
def test_a_name_that_says_v_prediction_is_told_where_nothing_else_says_it(tensors, name):
    saved(tensors, name)

    (said,) = model_of(checkpoint=name).advice

    assert said.startswith(
        f"the name of {name} suggests a model that predicts the velocity, but the file does not say so"
    )
    assert model_of(checkpoint=name, prediction="epsilon").advice == []
    Path(name).with_suffix(".yaml").write_text("model: {params: {parameterization: v}}", encoding="utf-8")
    assert model_of(checkpoint=name).advice == []


@pytest.mark.parametrize(("name", "tensor"), [("a-vpred.safetensors", "v_pred"), ("a-vpredator.safetensors", None)])
def test_such_a_name_is_no_news_where_the_file_says_it_and_some_names_only_look_so(tensors, name, tensor):
    saved(tensors | ({tensor: torch.zeros(1)} if tensor else {}), name)

    assert model_of(checkpoint=name).advice == []


def test_a_plain_row_has_none(tensors):
    saved(tensors)

    assert model_of(prompt="a (rocket:1.2), night", negative_prompt="blurry").advice == []
