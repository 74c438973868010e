"""Damaged and malicious files: an error of ours each or a valid read, never code run, never a traceback, never much memory."""

import builtins
import contextlib
import io
import json
import os
import pickle
import random
import subprocess
import sys
import tracemalloc
import zipfile
from pathlib import Path

import pytest
import torch

from axbake import users_files
from axbake.checkpoints import recipes
from axbake.checkpoints.containers import UnreadableCheckpoint, files_of, form_of, open_container
from axbake.checkpoints.embeddings import EmbeddingError, read_embedding
from axbake.checkpoints.finding import find_family, find_network, read_network
from axbake.checkpoints.pickles import UnsafeCheckpoint, convert_pickle, names_of
from axbake.checkpoints.prediction import read_sidecar
from axbake.checkpoints.recipes import read_recipe
from axbake.errors import AxbakeError
from axbake.families import FAMILIES
from axbake.families.others import recognise
from axbake.inspect import inspect_checkpoint
from axbake.loras.files import read_lora
from axbake.loras.fusing import Fusion
from axbake.loras.rows import lora_faults, row_loras, unknown_marks
from axbake.toolchain.axmodel import read_axmodel
from axbake.users_files import load_json, load_yaml
from tests import tiny
from tests.hostile import files as hostile
from tests.hostile import planted
from tests.hostile.files import Payload, joined, split, spoilt_bytes, zipped
from tests.unit.conftest import SD1

ROOT = Path(__file__).parents[2]
HOSTILE = 60  # inputs of the short attack
SAFETENSORS, NETWORKS, PICKLES, YAMLS, CONFIGS = 400, 60, 600, 400, 200  # mutations of each kind
STRANGE = [
    -1,
    0,
    1,
    7,
    2**31,
    2**48,
    2**63,
    2**64,
    10**30,
    1.5,
    True,
    None,
    "",
    "F16",
    [],
    {},
    [[1]],
    "\ud83d\ude00",
    "a" * 9999,
]
MOST_MEMORY = 2**31  # bytes
SOURCES = ["[]", "{", '{"configs": 3}', '{"configs": {"unet": 3, "vae": {"scaling_factor": "x"}}}']


def spoilt_header(draw, content):
    """A safetensors file whose header lies, in well-formed JSON."""
    header, tensors = split(content)
    name = draw.choice(sorted(header))
    entry = header[name]
    kind = draw.randrange(10)
    if kind == 0:
        del header[name]
    elif kind == 1:
        header[draw.choice(["x", "", name + ".", "a" * 10**5, name[1:]])] = header.pop(name)
    elif kind == 2:
        entry[draw.choice(sorted(entry))] = draw.choice(STRANGE)
    elif kind == 3:
        entry["shape"] = [draw.choice(STRANGE) for _ in range(draw.randrange(12))]
    elif kind == 4:
        # Of the same size, so that only the network's own shapes can object.
        entry["shape"] = draw.choice(
            [entry["shape"][::-1], [1, *entry["shape"]], [*entry["shape"], 1], entry["shape"][1:]]
        )
    elif kind == 5 and "data_offsets" in entry:
        entry["data_offsets"] = [
            max(0, offset + draw.choice([-8, -1, 1, 8, 2**40])) for offset in entry["data_offsets"]
        ]
    elif kind == 6:
        header["__metadata__"] = draw.choice([*STRANGE, {"a": 1}, *({"axbake.source": text} for text in SOURCES)])
    elif kind == 7:
        text = json.dumps(header)
        return joined(f"{text[:-1]}, {json.dumps(name)}: {json.dumps(entry)}}}", tensors)
    elif kind == 8:
        return joined(
            draw.choice(["[" * 10**5, '{"a":' * 10**4, "{}", "[]", "null", '{"a": NaN}', '{"a": 1e999}']), tensors
        )
    else:
        return draw.choice([2**63, 2**64 - 1, 2**32, 0, 1]).to_bytes(8, "little") + content[8:]
    return joined(header, tensors)


def looked_at(path):
    """Everything that is read from a checkpoint's header, as an import and `axbake.inspect` do."""
    container = open_container(path)
    for component in find_family(container, FAMILIES).components:
        read_network(container, component)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "tiny.safetensors"
    return tiny.save(tiny.bk_sdm_tiny(), path, extra=tiny.leftovers()).read_bytes()


def outcomes(cases, read):
    """How many *cases* were read and refused; any other error than ours is the test's."""
    counts = {"read": 0, "refused": 0}
    for case in cases:
        try:
            read(case)
            counts["read"] += 1
        except AxbakeError as error:
            assert str(error), type(error)
            counts["refused"] += 1
    return counts


def test_spoilt_safetensors_files_are_read_or_refused(whole, tmp_path):
    draw, path = random.Random(1), tmp_path / "spoilt.safetensors"

    def read(number):
        path.write_bytes((spoilt_header if number % 2 else spoilt_bytes)(draw, whole))
        said = inspect_checkpoint(path)
        assert said["why"]
        return said["bakeable"]

    bakeable = [read(number) for number in range(SAFETENSORS)]

    assert 0 < sum(bakeable) < SAFETENSORS / 2


def test_shapes_that_lie_are_refused_before_a_network_is_built_of_them(whole, tmp_path):
    draw, path = random.Random(2), tmp_path / "spoilt.safetensors"
    header, tensors = split(whole)
    weights = [name for name in header if name.endswith("weight") and len(header[name]["shape"]) > 1]

    def read(_):
        lying = json.loads(json.dumps(header))
        for name in draw.sample(weights, draw.choice([1, 3])):
            lying[name]["shape"] = draw.choice(
                [lying[name]["shape"][::-1], [*lying[name]["shape"], 1], [1, *lying[name]["shape"]]]
            )
        path.write_bytes(joined(lying, tensors))
        container = open_container(path)
        family = find_family(container, FAMILIES)
        for component in family.components:
            find_network(container, component, family.latents)

    counts = outcomes(range(NETWORKS), read)

    assert counts["refused"] > NETWORKS / 2, counts


@pytest.mark.parametrize("claim", [10**9, 2**63, 2**64 - 1])
def test_a_header_that_claims_to_be_huge_is_refused_unread(claim, tmp_path):
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.write(claim.to_bytes(8, "little") + b"{")
        file.truncate(2 * 10**9)  # takes no room

    with pytest.raises(UnreadableCheckpoint, match="header"):
        open_container(path)


YAML = """
model:
  base_learning_rate: 1.0e-4
  target: ldm.models.diffusion.ddpm.LatentDiffusion
  params:
    parameterization: "v"
    linear_start: 0.00085
    unet_config: {target: ldm.modules.diffusionmodules.openaimodel.UNetModel, params: {use_checkpoint: true}}
    cond_stage_config: &text {target: ldm.modules.encoders.modules.FrozenOpenCLIPEmbedder}
    again: *text
"""


def test_spoilt_yamls_are_read_or_refused(tmp_path):
    draw, checkpoint = random.Random(3), tmp_path / "model.safetensors"
    bombs = [
        "!!python/object/apply:os.system ['touch ran']",
        "a: &a [" + "*a," * 9 + "]",
        "{" * 5000,
        "- " * 5000,
        "a: 2001-99-99",
    ]
    bombs += [
        "&a [&b [*a]]",
        "? {a: b}: c\n: d",
        "a: !!int x",
        "a: !!timestamp x",
        "a: 0x",
        "<<: 3",
        "1_:60:60: .",
        "a: !!binary x",
    ]

    def read(number):
        text = bombs[number].encode() if number < len(bombs) else spoilt_bytes(draw, YAML.encode())
        checkpoint.with_suffix(".yaml").write_bytes(text)
        assert read_sidecar(checkpoint) in ("", "epsilon", "v_prediction")

    counts = outcomes(range(YAMLS), read)

    assert min(counts.values()) > YAMLS / 10, counts
    assert not (tmp_path / "ran").exists() and not Path("ran").exists()


def test_spoilt_folders_are_read_or_refused(tmp_path):
    draw = random.Random(4)
    folder = tiny.save_folder(tiny.bk_sdm_tiny(), tmp_path / "model", shard="1MB")
    texts = {path: path.read_bytes() for path in folder.rglob("*.json") if path.parent.name != "tokenizer"}

    def read(_):
        path = draw.choice(sorted(texts))
        path.write_bytes(spoilt_bytes(draw, texts[path]))
        try:
            files_of(folder)
            looked_at(folder)
        finally:
            path.write_bytes(texts[path])

    counts = outcomes(range(CONFIGS), read)

    assert counts["refused"] > CONFIGS / 10, counts


@pytest.mark.parametrize("name", ["../outside.safetensors", "/etc/passwd", "sub/x.safetensors"])
def test_an_index_that_names_files_elsewhere_is_refused(name, tmp_path):
    folder = tiny.save_folder(tiny.bk_sdm_tiny(), tmp_path / "model", shard="1MB")
    (index,) = (folder / "unet").glob("*.index.json")
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": name}}))

    with pytest.raises(UnreadableCheckpoint, match="does not name files beside it"):
        files_of(folder)


def legacy(content):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def payloads(mark):
    """Name -> bytes of a file that would make *mark*, and what it asks for."""
    touch = f"touch {mark}"
    system = Payload(os.system, touch)
    nested = Payload(pickle.loads, pickle.dumps(system))
    chain = Payload(builtins.getattr, "", "format")
    weights = {"state_dict": {"weight": torch.ones(2)}}
    return {
        "os.system": (zipped(pickle.dumps({"state_dict": system}, 2)), "posix.system"),
        "builtins.exec": (zipped(pickle.dumps([Payload(exec, f"open({str(mark)!r}, 'w')")], 2)), "builtins.exec"),
        "builtins.eval": (zipped(pickle.dumps(Payload(eval, f"open({str(mark)!r}, 'w')"), 2)), "builtins.eval"),
        "subprocess": (zipped(pickle.dumps(Payload(subprocess.Popen, ["touch", str(mark)]), 2)), "subprocess.Popen"),
        "a pickle in a pickle": (zipped(pickle.dumps({"a": nested}, 2)), "pickle.loads"),
        "getattr": (zipped(pickle.dumps(chain, 2)), "builtins.getattr"),
        "a newer protocol": (zipped(pickle.dumps(system, 4)), "posix.system"),
        "no archive": (pickle.dumps(system, 2), "posix.system"),
        "no archive, newer": (pickle.dumps(system, 5), "posix.system"),
        "text protocol": (pickle.dumps(system, 0), "posix.system"),
        "by hand": (
            b"\x80\x02cos\nsystem\nX" + len(touch).to_bytes(4, "little") + touch.encode() + b"\x85R.",
            "os.system",
        ),
        "old torch": (legacy(weights | {"callbacks": system}), "posix.system"),
        "torch's own": (zipped(b"\x80\x02ctorch.hub\nload\nX\x01\x00\x00\x00a\x85R."), "torch.hub.load"),
        "a computed name": (b"\x80\x04\x8c\x02os\x94\x8c\x06system\x940h\x00h\x01\x93\x8c\x01a\x85R.", None),
    }


# Reads files in one process, as the one of `axbake.checkpoints.pickles` does with one, so that hundreds do not start hundreds.
READING = """
import json, pathlib, sys
from axbake.checkpoints import pickles
from tests import peaks
import torch
torch.set_num_threads(1)
pickles._limit_process(0)
answers = {path.name: pickles.main(path, None) for path in sorted(pathlib.Path(sys.argv[1]).iterdir())}
print(json.dumps([answers, peaks.peak()]))
"""


def read_all(folder):
    """What `axbake.checkpoints.pickles` says of each file of *folder*; the most memory it took, in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", READING, folder], cwd=ROOT, capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    return json.loads(done.stdout)


def test_famous_payloads_are_refused_by_name_and_not_run(tmp_path):
    folder, mark = tmp_path / "payloads", tmp_path / "ran"
    folder.mkdir()
    files = payloads(mark)
    for name, (content, _) in files.items():
        (folder / f"{name}.ckpt").write_bytes(content)

    answers, _ = read_all(folder)

    for name, (_, asked) in files.items():
        answer = answers[f"{name}.ckpt"]
        assert answer.get("error") == "UnsafeCheckpoint", (name, answer)
        assert asked is None or asked in answer["text"], (name, answer)
    assert not mark.exists()


def test_a_payload_ends_a_conversion_with_its_name(tmp_path):
    content, asked = payloads(tmp_path / "ran")["os.system"]
    path = tmp_path / "model.ckpt"
    path.write_bytes(content)

    with pytest.raises(UnsafeCheckpoint, match=f"asks for {asked}, which weights do not need. axbake did not run it"):
        convert_pickle(path, tmp_path / "out.safetensors")

    assert not (tmp_path / "ran").exists() and not (tmp_path / "out.safetensors").exists()


def bombs():
    """Files of a few bytes that ask for much."""
    vast = torch.as_strided(torch.ones(1), (10**6, 10**5), (0, 0))
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": vast}}, file)
    squeezed = io.BytesIO()
    with zipfile.ZipFile(squeezed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + b"N0" * (4 * 10**7) + b"N.")
    return {
        "a tensor of one value": file.getvalue(),
        "a squeezed program": squeezed.getvalue(),
        "a long text": b"\x80\x02X\xff\xff\xff\xff" + b"a" * 100 + b".",
        "a longer text": b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"a.",
        "nested lists": b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
        "a long number": b"\x80\x02\x8b\xff\xff\xff\x7f" + b"1" * 100 + b".",
    }


def test_bombs_do_not_take_the_memory(tmp_path):
    folder = tmp_path / "bombs"
    folder.mkdir()
    for name, content in bombs().items():
        (folder / f"{name}.ckpt").write_bytes(content)

    answers, memory = read_all(folder)

    assert {name: answer.get("error") for name, answer in answers.items()} == dict.fromkeys(
        answers, "UnreadableCheckpoint"
    )
    assert memory < MOST_MEMORY


def test_spoilt_pickles_are_read_or_refused(tmp_path):
    draw, folder = random.Random(5), tmp_path / "spoilt"
    folder.mkdir()
    tensors = {f"layer.{i}.weight": torch.arange(6.0).reshape(2, 3) + i for i in range(4)}
    content = {"state_dict": tensors, "epoch": 1, "callbacks": [None, (1, 2.5, "x")]}
    new = io.BytesIO()
    torch.save(content, new)
    with zipfile.ZipFile(new) as archive:
        instructions = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    for number in range(PICKLES):
        spoilt = [
            lambda: spoilt_bytes(draw, new.getvalue()),
            lambda: spoilt_bytes(draw, legacy(content)),
            lambda: zipped(spoilt_bytes(draw, instructions)),
        ][number % 3]()
        (folder / f"{number}.ckpt").write_bytes(spoilt)

    answers, memory = read_all(folder)

    refused = [answer for answer in answers.values() if "error" in answer]
    assert len(answers) == PICKLES and all(answer["text"] for answer in refused)
    assert PICKLES / 3 < len(refused) < PICKLES
    assert memory < MOST_MEMORY


def test_files_of_every_kind_that_strangers_made_are_read_or_refused_in_a_sentence(tmp_path):
    """A short run of `python -m tests.hostile.files`."""
    told = []

    counts = hostile.attack(HOSTILE, 7, tmp_path, tell=told.append)

    assert told == []
    assert counts["all", "faults"] == 0
    kinds = {kind for kind, _ in counts} - {"all"}
    assert len(kinds) == len(hostile.MAKERS)
    assert sum(counts[kind, "read"] for kind in kinds) > HOSTILE / 20
    assert sum(counts[kind, "refused"] for kind in kinds) > HOSTILE / 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (hostile.doubling(60), "took more than 8 s of computing"),
        (zipped(hostile.doubling(60)), "took more than 8 s of computing"),
        (b"\x80\x02" + b"N0" * 5_000_000 + b"N.", "more than 4000000 bytes of instructions|took more than 8 s"),
    ],
    ids=["a key whose hash never ends", "the same in an archive", "megabytes of instructions"],
)
def test_pickles_that_never_end_are_ended(content, said, tmp_path):
    path = tmp_path / "word.pt"
    path.write_bytes(content)

    with pytest.raises(EmbeddingError, match=said):
        read_embedding(path)


@pytest.mark.parametrize(
    "read", [inspect_checkpoint, files_of, form_of, read_lora, read_embedding, read_recipe, read_sidecar]
)
@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "long name", "nul"])
def test_what_is_no_file_is_refused_unread(kind, read, tmp_path):
    path = tmp_path / "model.yaml"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "loop":
        path.symlink_to(path)
    else:
        path = tmp_path / {"long name": "a" * 300 + ".yaml", "nul": "a\x00b.yaml"}[kind]

    with contextlib.suppress(AxbakeError):
        said = read(path)
        assert said == "" or said == [path] or said["bakeable"] is False


@pytest.mark.parametrize("target", ["/dev/zero", "pipe", "itself", "large"])
def test_a_folders_config_that_is_no_file_is_refused_unread(target, tmp_path):
    folder = tiny.save_folder(tiny.bk_sdm_tiny(), tmp_path / "model")
    config = folder / "vae" / "config.json"
    config.unlink()
    if target == "pipe":
        os.mkfifo(config)
    elif target == "large":
        config.write_text("{" + " " * 2_000_000 + "}")
    else:
        config.symlink_to(config if target == "itself" else target)

    with pytest.raises(UnreadableCheckpoint, match=r"vae/config\.json: "):
        files_of(folder)


def operations(work):
    """How many of Python's instructions *work* takes, and how much memory at most."""
    count = 0

    def within(frame, event, argument):
        nonlocal count
        count += event == "opcode"
        return within

    def enter(frame, event, argument):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return within

    tracemalloc.start()
    before = sys.gettrace()
    sys.settrace(enter)
    try:
        with contextlib.suppress(AxbakeError, ValueError):
            work()
    finally:
        sys.settrace(before)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return count, peak


def entries(count, name="t{}.weight"):
    """A safetensors header of so many tensors of no axes."""
    header = {name.format(n): {"dtype": "F16", "shape": [], "data_offsets": [2 * n, 2 * n + 2]} for n in range(count)}
    return joined(header, bytes(2 * count))


def written(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def peft_lora(count, path):
    """A LoRA of so many modules, whose metadata has as many alphas."""
    patterns = {f"block.{n}": 1 for n in range(count)}
    header, tensors = split(entries(count, "unet.down_blocks.0.resnets.{}.conv1.lora_A.weight"))
    told = {"lora_adapter_metadata": json.dumps({"unet.alpha_pattern": patterns})}
    return written(path, joined({"__metadata__": told} | header, tensors))


def fused(path):
    Fusion(
        SD1.component("unet"),
        {f"down_blocks.0.resnets.{n}.conv1.weight": (1,) for n in range(9)},
        [(path, 1.0)],
        width=32,
    )


def steps(count, **changes):
    step = {"method": "weighted_sum", "a": "a", "b": "b", "alpha": 0.5}
    told = [step | {"name": f"s{n}"} | changes for n in range(count)]
    return json.dumps({"checkpoints": {name: {"path": "x", "sha256": "0" * 10} for name in "ab"}, "steps": told})


def marked(count):
    cell = ", ".join(f"l{n}.safetensors" for n in range(count))
    prompt = " ".join(f"<lora:l{n}:0.5> <lora:x{n}>" for n in range(count))
    row = {"loras": cell, "prompt": prompt, "negative_prompt": prompt, "calibration_prompts": []}
    list(lora_faults(row))
    list(unknown_marks(row | {"loras": row_loras(cell, [prompt])}))


#: What is read -> what reads an input of a size; it has to be refused or read in proportion to it
GROWING = {
    "JSON": lambda n, place: load_json(json.dumps([{"a": [1, "b"]}] * n)),
    "a name that stands twice": lambda n, place: load_json("{" + "".join(f'"{k}": 1, ' for k in range(n)) + '"0": 1}'),
    "YAML": lambda n, place: load_yaml("".join(f"- {{a: [b, {k}]}}\n" for k in range(n))),
    "aliases": lambda n, place: load_yaml("a: &a [x]\nb: [" + "*a, " * n + "]"),
    "aliases of aliases": lambda n, place: load_yaml(
        "a0: &a0 [x]\n" + "".join(f"a{k}: &a{k} [*a{k - 1}, *a{k - 1}]\n" for k in range(1, n))
    ),
    "merge keys": lambda n, place: load_yaml(
        "a0: &a0 {x: 1}\n" + "".join(f"a{k}: &a{k} {{<<: [*a{k - 1}, *a{k - 1}]}}\n" for k in range(1, n))
    ),
    "a header": lambda n, place: open_container(written(place / "x.safetensors", entries(n))),
    "kinds of files": lambda n, place: recognise({f"a.b.{k}.c.weight": (1,) for k in range(n)}),
    "a LoRA": lambda n, place: read_lora(
        written(place / "x.safetensors", entries(n, "unet.down_blocks.{}.lora_A.weight"))
    ),
    "a LoRA's alphas": lambda n, place: fused(peft_lora(n, place / "x.safetensors")),
    "marks in prompts": lambda n, place: marked(n),
    "a recipe": lambda n, place: read_recipe(written(place / "r.yaml", steps(n))),
    "faults of a recipe": lambda n, place: read_recipe(written(place / "r.yaml", steps(n, a="z", x=[1]))),
    "a pickle": lambda n, place: names_of(written(place / "x.pt", b"\x80\x02" + b"N0" * n + b"N.")),
    "shards": lambda n, place: files_of(sharded(place, n)),
    "an axmodel": lambda n, place: read_axmodel(written(place / "x.axmodel", b"\x08\x0a" + b"\x18\x01" * n)),
}


def sharded(place, count):
    folder = place / "model"
    if not folder.exists():
        tiny.save_folder(tiny.bk_sdm_tiny(), folder, shard="1MB")
    (index,) = (folder / "unet").glob("*.index.json")
    index.write_text(json.dumps({"weight_map": {f"w{n}": f"{n}.safetensors" for n in range(count)}}))
    return folder


@pytest.mark.parametrize("what", GROWING)
def test_work_grows_no_faster_than_what_is_read(what, tmp_path):
    """Counted, and not timed: Python's instructions, and memory, of an input and of one of twice the size."""
    read = GROWING[what]
    with contextlib.suppress(AxbakeError, ValueError):
        read(2, tmp_path)  # what is made once
    size = 30 if "recipe" in what else 60  # jsonschema takes long

    (some, memory), (twice, double) = (operations(lambda n=n: read(n, tmp_path)) for n in (size, 2 * size))

    assert twice < 2.3 * some
    assert double < 2.3 * memory + 50_000


class Counted(str):
    """A text that counts how often it is compared: the loops of C that Python's instructions do not show."""

    compared = 0

    def __eq__(self, other):
        Counted.compared += 1
        return str.__eq__(self, other)

    __hash__ = str.__hash__


@pytest.mark.parametrize(
    "work",
    [
        lambda n: users_files._without_doubles([(Counted(f"{k}"), 1) for k in (*range(n), n - 1)]),
        lambda n: list(
            recipes._step_faults(
                {
                    "checkpoints": {Counted(f"c{k}"): {} for k in range(n)},
                    "steps": [
                        {"method": "weighted_sum", "a": Counted(f"c{k}"), "b": Counted("z"), "alpha": 1}
                        for k in range(n)
                    ],
                }
            )
        ),
        lambda n: list(
            lora_faults({"loras": ", ".join(f"{k}.safetensors" for k in range(n)), "prompt": "", "negative_prompt": ""})
        ),
    ],
    ids=["names of a JSON", "names of a recipe", "names of LoRAs"],
)
def test_names_are_not_compared_with_all_others(work):
    found = []
    for count in (100, 200):
        Counted.compared = 0
        with contextlib.suppress(ValueError):
            work(count)
        found.append(Counted.compared)

    assert found[1] <= 2.4 * found[0] + 50


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A process that reads what it is given, and its directory."""
    directory = tmp_path_factory.mktemp("planted")
    reader = hostile.Reader(directory, fenced=False)
    yield reader, directory
    reader.close()


# Of those that end the process, one, and all after the others: the next one's imports take seconds.
@pytest.mark.parametrize(
    ("fault", "name"),
    sorted(
        [(name.split(" ", 1)[1].rpartition(" ")[0], name) for name in planted.READERS if name != "planted ended 0"],
        key=lambda one: one[0] in ("hang", "ended"),
    ),
)
def test_the_attack_sees_harm_of_every_kind(reader, monkeypatch, fault, name):
    process, directory = reader
    monkeypatch.setattr(hostile, "SECONDS", 3 if fault == "hang" else 20)
    path = directory / name.replace(" ", "-") / "file"
    path.parent.mkdir()
    mark = directory / "ran"

    answer = process.read(hostile.Case("planted", name, path))

    assert fault in list(hostile.faults(hostile.Case("planted", name, path), answer, mark))
    mark.unlink(missing_ok=True)
