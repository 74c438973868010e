"""`llm_build`: a folder of Hugging Face's with a language model in, an emulated `.axmodel` a layer out, in Pulsar2's layout.

Source: AXERA-TECH/pulsar2-docs-en, `source/appendix/build_llm.md` (Pulsar2 5.2). A real model has several groups of shapes; an
emulated one has only the group for a whole prompt. Weights are S8, symmetric, with one scale for each row (an output channel);
what a layer takes, gives and multiplies is rounded to bfloat16, sums are float32. Of real ones only the types of weights and of
states are documented (`--weight_type`, `--hidden_state_type`).
"""

import argparse
import json
import logging
import math
import struct
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from axbake import __version__
from axbake.emulator import PRODUCER
from axbake.emulator.build import EMULATED, VERSION
from axbake.emulator.config import NotEmulatedError
from axbake.emulator.encoding import WEIGHT_LIMIT
from axbake.emulator.writer import ModelWriter, written_beside
from axbake.errors import AxbakeError
from axbake.users_files import MOST_JSON_BYTES, UnreadableFile, read_text

log = logging.getLogger("axbake.emulator")
PREFIX = "model."  # of the tensors' names
KNOWN = "qwen3"  # `model_type` that is emulated
BF16 = TensorProto.BFLOAT16
OPSET = 18
MOST_HEADER = 100_000_000  # bytes of a safetensors file
MATRICES = (*(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")))
VECTORS = ("input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm")
NUMBERS = (
    *(
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
    ),
    *("vocab_size", "rms_norm_eps", "rope_theta"),
)


class LanguageModelError(AxbakeError):
    """A folder is not a language model that `llm_build` takes, or not one that the emulator knows."""


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    input_path: Path
    output_path: Path
    prefill_len: int
    kv_cache_len: int
    chip: str
    check_level: int


@dataclass(frozen=True)
class Sizes:
    """Numbers of a `config.json`."""

    layers: int
    width: int
    inner: int
    heads: int
    key_heads: int
    head: int
    words: int
    epsilon: float
    theta: float


class Folder:
    """Tensors of a folder's safetensors files."""

    def __init__(self, place: Path) -> None:
        self._where: dict[str, tuple[Path, str, tuple[int, ...], int, int]] = {}
        for path in sorted(place.glob("*.safetensors")):
            self._where |= {name: (path, *entry) for name, entry in _entries(path)}
        self.place = place

    def tensor(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Tensor *name*, float32.

        Raises:
            LanguageModelError: it is not there, or of another shape or type.
        """
        full = f"{PREFIX}{name}.weight"
        if full not in self._where:
            raise LanguageModelError(f"{self.place}: no tensor {full} in its safetensors files")
        path, kind, found, begin, size = self._where[full]
        width = {"BF16": 2, "F16": 2, "F32": 4}.get(kind)
        if found != shape or width is None or size != width * math.prod(shape):
            raise LanguageModelError(f"{path.name}: {full}: {kind} {found}, wanted BF16, F16 or F32 of {shape}")
        with path.open("rb") as file:
            file.seek(begin)
            raw = file.read(size)
        if kind == "BF16":
            return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32).reshape(shape)
        return np.frombuffer(raw, "<f2" if width == 2 else "<f4").astype(np.float32).reshape(shape)


def _entries(path: Path) -> Iterator[tuple[str, tuple[str, tuple[int, ...], int, int]]]:
    """Name, type, shape, place and bytes of each tensor of a safetensors file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > MOST_HEADER:
                raise ValueError(f"a header of {length} bytes")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                yield name, (entry["dtype"], tuple(entry["shape"]), 8 + length + begin, end - begin)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        raise LanguageModelError(f"{path}: not a safetensors file ({error})") from error


#: Flags that are not emulated otherwise -> what they have to be
UNDONE = {
    **{"model_config": "", "model_type": "", "post_topk": 0, "post_weight_type": "s8", "hidden_state_type": "bf16"},
    **{"weight_type": "s8", "prompt": "1+1=", "image_size": 224, "last_kv_cache_len": None, "tensor_parallel_size": 0},
    **{"ret_postnorm": False, "ld_param_opt": False},
}
WEIGHT_TYPES = ("fp16", "bf16", "fp32", "s8", "s4", "fp8_e5m2", "fp8_e4m3")
POST_TYPES = ("bf16", "s8", "fp8_e5m2", "fp8_e4m3")
CHIPS, MODES = ("AX620E", "AX650", "LAMBERT"), ("NPU1", "NPU2", "NPU3")


def main(arguments: Sequence[str]) -> int:
    """Exit code of `llm_build` with *arguments*."""
    logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="%(message)s", force=True)
    log.setLevel(logging.INFO)
    options = _parser().parse_args(arguments)
    try:
        refused = [
            f"--{name}: the emulator does not do {getattr(options, name)!r}; leave it out or use the real Pulsar2"
            for name, resting in UNDONE.items()
            if getattr(options, name) != resting
        ]
        if refused:
            raise NotEmulatedError("\n".join(refused))
        build_language_model(Options(**{name: getattr(options, name) for name in Options.__dataclass_fields__}))
    except (AxbakeError, OSError) as error:
        for line in str(error).splitlines():
            sys.stderr.write(f"axbake emulator: {line}\n")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    """The documented flags with their defaults."""
    parser = argparse.ArgumentParser(
        prog="python -m axbake.emulator.llm_build", description=VERSION, allow_abbrev=False
    )
    add = parser.add_argument
    add("--input_path", type=Path, default=Path())
    add("--output_path", type=Path, default=Path())
    for name, resting in (("prefill_len", 0), ("parallel", 1), ("kv_cache_len", 127), ("post_topk", 0)):
        add(f"--{name}", type=int, default=resting)
    for name, resting in (("image_size", 224), ("tensor_parallel_size", 0)):
        add(f"--{name}", type=int, default=resting)
    add("--last_kv_cache_len", type=int, action="append", default=None)
    for name in ("model_config", "model_type"):
        add(f"--{name}", default="")
    add("--prompt", default="1+1=")
    add("--post_weight_type", choices=POST_TYPES, default="s8")
    add("-t", "--hidden_state_type", choices=("fp16", "bf16", "fp32"), default="bf16")
    add("-w", "--weight_type", choices=WEIGHT_TYPES, default="s8")
    add("-c", "--check_level", type=int, choices=(0, 1, 2), default=0)
    add("--chip", choices=CHIPS, default="AX650")
    add("--npu_mode", choices=MODES)
    for name in ("ret_postnorm", "ld_param_opt"):
        add(f"--{name}", action="store_true")
    return parser


def build_language_model(options: Options) -> None:
    """Write a model a layer to the output path, as `{model_type}_p{prefill_len}_l{layer}_together.axmodel`.

    Raises:
        LanguageModelError
    """
    log.info("axbake emulator of Pulsar2, %s: its models run on hosts only", VERSION)
    kind, sizes = read_sizes(options.input_path / "config.json")
    if not 0 < options.prefill_len <= options.kv_cache_len:
        raise LanguageModelError(
            f"--prefill_len {options.prefill_len}, --kv_cache_len {options.kv_cache_len}: wanted a prompt's tokens, and at least"
            " as many of the cache: those are the rows of a layer's table of positions"
        )
    folder = Folder(options.input_path)
    log.info("Config(\n    model_type='%s',\n    num_hidden_layers=%d\n)", kind, sizes.layers)
    log.info("prepare llm model done!")
    options.output_path.mkdir(parents=True, exist_ok=True)
    for number in range(sizes.layers):
        name = f"{kind}_p{options.prefill_len}_l{number}_together.axmodel"
        with (
            tempfile.TemporaryFile(dir=options.output_path) as spool,
            written_beside(options.output_path / name) as file,
        ):
            writer = ModelWriter(options.output_path / name, spool)
            writer.finish(_layer(folder, number, sizes, options, writer), file)
        log.info("building llm decode layers %d/%d", number + 1, sizes.layers)
    log.info("the post model is not emulated: it makes words of the last state")
    if options.check_level:
        log.info("no check: the emulator has no NPU to compare with")
    log.info("build llm model done! emulated, not for a board")


def read_sizes(path: Path) -> tuple[str, Sizes]:
    """`model_type` and the sizes in a `config.json`.

    Raises:
        LanguageModelError: it is none, or of a model that is not emulated.
    """
    try:
        said: Any = json.loads(read_text(path, most_bytes=MOST_JSON_BYTES))
        kind = said["model_type"]
        found = [said[name] for name in NUMBERS]
    except (UnreadableFile, ValueError, KeyError, TypeError) as error:
        raise LanguageModelError(
            f"{path}: {type(error).__name__}: {error}; wanted a language model's, with model_type, {', '.join(NUMBERS)}"
        ) from error
    if kind != KNOWN:
        raise LanguageModelError(
            f"{path}: model_type {kind!r}: the emulator knows {KNOWN}; use the real Pulsar2 for others of its list"
        )
    if not all(isinstance(number, int | float) and number > 0 for number in found):
        raise LanguageModelError(f"{path}: {dict(zip(NUMBERS, found, strict=True))}: wanted numbers above 0")
    layers, width, inner, heads, key_heads, head, words, epsilon, theta = found
    return kind, Sizes(layers, width, inner, heads, key_heads, head, words, epsilon, theta)


def _layer(folder: Folder, number: int, sizes: Sizes, options: Options, writer: ModelWriter) -> onnx.ModelProto:
    """The model of one layer, whose constants *writer* gets."""
    shapes = matrix_shapes(sizes)
    for name in MATRICES:
        _add_matrix(name, folder.tensor(f"layers.{number}.{name}", shapes[name]), writer)
    for name in VECTORS:
        width = sizes.head if name.endswith(("q_norm", "k_norm")) else sizes.width
        writer.add(name, folder.tensor(f"layers.{number}.{name}", (width,)))
    for name, table in tables(sizes, options.kv_cache_len).items():
        writer.add(name, table)
    writer.add("scale", np.array(1 / math.sqrt(sizes.head), np.float32))
    writer.add("epsilon", np.array(sizes.epsilon, np.float32))
    tokens, keys = options.prefill_len, sizes.key_heads * sizes.head
    graph = helper.make_graph(
        _Nodes(sizes, tokens, writer).all(),
        f"layer_{number}",
        [
            helper.make_tensor_value_info("K_cache", BF16, (1, 1, sizes.width)),
            helper.make_tensor_value_info("V_cache", BF16, (1, 1, sizes.width)),
            helper.make_tensor_value_info("indices", TensorProto.UINT32, (1, tokens)),
            helper.make_tensor_value_info("input", BF16, (1, tokens, sizes.width)),
            helper.make_tensor_value_info("mask", BF16, (1, tokens, tokens)),
        ],
        [
            helper.make_tensor_value_info("K_cache_out", BF16, (1, tokens, keys)),
            helper.make_tensor_value_info("V_cache_out", BF16, (1, tokens, keys)),
            helper.make_tensor_value_info("output", BF16, (1, tokens, sizes.width)),
        ],
    )
    model = helper.make_model(
        graph,
        producer_name=PRODUCER,
        producer_version=__version__,
        doc_string=EMULATED,
        ir_version=10,
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    properties = {"emulated": EMULATED, "target_hardware": options.chip, "toolchain_version": VERSION}
    properties["shape_group"] = "1"  # which of a real one's this is
    for key, value in sorted(properties.items()):
        model.metadata_props.add(key=key, value=value)
    return model


def matrix_shapes(sizes: Sizes) -> Mapping[str, tuple[int, int]]:
    """Rows and columns of each matrix of a layer."""
    queries, keys = sizes.heads * sizes.head, sizes.key_heads * sizes.head
    attention = {
        "q": (queries, sizes.width),
        "k": (keys, sizes.width),
        "v": (keys, sizes.width),
        "o": (sizes.width, queries),
    }
    inner = {"gate": (sizes.inner, sizes.width), "up": (sizes.inner, sizes.width), "down": (sizes.width, sizes.inner)}
    return {f"self_attn.{name}_proj": shape for name, shape in attention.items()} | {
        f"mlp.{name}_proj": shape for name, shape in inner.items()
    }


def tables(sizes: Sizes, positions: int) -> dict[str, np.ndarray]:
    """(positions, head) float32 cosines and sines by which queries and keys are turned, both halves alike."""
    steps = np.arange(0, sizes.head, 2, dtype=np.float32) / sizes.head
    angles = np.outer(np.arange(positions), (1 / sizes.theta**steps).astype(np.float32))
    both = np.concatenate([angles, angles], axis=1)
    return {"cosines": np.cos(both).astype(np.float32), "sines": np.sin(both).astype(np.float32)}


def quantise_rows(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """*matrix*, (rows, columns) float32, as int8, and the scale of each row; a row of zeros has scale 1."""
    largest = np.abs(matrix).max(axis=1)
    scales = np.where(largest > 0, largest / WEIGHT_LIMIT, 1).astype(np.float32)
    return np.clip(np.rint(matrix / scales[:, None]), -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int8), scales


def _add_matrix(name: str, matrix: np.ndarray, writer: ModelWriter) -> None:
    """Its integers turned, as they are multiplied from the right."""
    integers, scales = quantise_rows(matrix)
    writer.add(f"{name}.s8", np.ascontiguousarray(integers.T))
    writer.add(f"{name}.scales", scales)
    writer.add(f"{name}.zeros", np.zeros(len(scales), np.int8))


class _Nodes:
    """The nodes of a layer."""

    def __init__(self, sizes: Sizes, tokens: int, writer: ModelWriter) -> None:
        self.sizes, self.tokens, self._writer, self._nodes = sizes, tokens, writer, list[onnx.NodeProto]()

    def all(self) -> list[onnx.NodeProto]:
        """All of them, in order."""
        sizes = self.sizes
        hidden = self._node("Cast", "input", to=TensorProto.FLOAT)
        inside = self._normed(hidden, "input_layernorm")
        queries = self._heads(self._times(inside, "self_attn.q_proj"), sizes.heads, "self_attn.q_norm")
        keys = self._heads(self._times(inside, "self_attn.k_proj"), sizes.key_heads, "self_attn.k_norm")
        values = self._heads(self._times(inside, "self_attn.v_proj"), sizes.key_heads)
        places = self._node("Cast", "indices", to=TensorProto.INT64)
        turns = [self._node("Gather", table, places, axis=0) for table in ("cosines", "sines")]
        turns = [self._node("Unsqueeze", one, self._numbers(1)) for one in turns]
        queries, keys = (self._rounded(self._turned(one, *turns)) for one in (queries, keys))
        values = self._rounded(values)
        for name, one in (("K_cache_out", keys), ("V_cache_out", values)):
            flat = self._shaped(self._node("Transpose", one, perm=[0, 2, 1, 3]), 1, self.tokens, -1)
            self._node("Cast", flat, to=BF16, output=name)
        mask = self._node("Unsqueeze", self._node("Cast", "mask", to=TensorProto.FLOAT), self._numbers(1))
        across = self._node("Transpose", self._repeated(keys), perm=[0, 1, 3, 2])
        scores = self._node("Mul", self._node("MatMul", queries, across), "scale")
        shares = self._rounded(self._node("Softmax", self._node("Add", scores, mask), axis=-1))
        seen = self._node("Transpose", self._node("MatMul", shares, self._repeated(values)), perm=[0, 2, 1, 3])
        hidden = self._node("Add", hidden, self._times(self._shaped(seen, 1, self.tokens, -1), "self_attn.o_proj"))
        inside = self._normed(hidden, "post_attention_layernorm")
        gate, up = self._times(inside, "mlp.gate_proj"), self._times(inside, "mlp.up_proj")
        lit = self._node("Mul", self._node("Mul", gate, self._node("Sigmoid", gate)), up)
        self._node("Cast", self._node("Add", hidden, self._times(lit, "mlp.down_proj")), to=BF16, output="output")
        return self._nodes

    def _node(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Add a node; name of its output."""
        output = output or f"{operator}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def _numbers(self, *numbers: int) -> str:
        name = f"numbers_{'_'.join(map(str, numbers))}"
        if name not in self._writer.names:
            self._writer.add(name, np.array(numbers, np.int64))
        return name

    def _shaped(self, tensor: str, *shape: int) -> str:
        return self._node("Reshape", tensor, self._numbers(*shape))

    def _rounded(self, tensor: str) -> str:
        """As bfloat16 has it, in float32."""
        return self._node("Cast", self._node("Cast", tensor, to=BF16), to=TensorProto.FLOAT)

    def _times(self, tensor: str, matrix: str) -> str:
        names = [f"{matrix}.{part}" for part in ("s8", "scales", "zeros")]
        return self._node("MatMul", self._rounded(tensor), self._node("DequantizeLinear", *names, axis=1))

    def _normed(self, tensor: str, weight: str) -> str:
        mean = self._node("ReduceMean", self._node("Mul", tensor, tensor), self._numbers(-1), keepdims=1)
        root = self._node("Sqrt", self._node("Add", mean, "epsilon"))
        return self._node("Mul", self._node("Div", tensor, root), weight)

    def _heads(self, tensor: str, heads: int, norm: str = "") -> str:
        """(1, T, heads × D) -> (1, heads, T, D), each head normed where there is a norm."""
        parted = self._shaped(tensor, 1, self.tokens, heads, self.sizes.head)
        return self._node("Transpose", self._normed(parted, norm) if norm else parted, perm=[0, 2, 1, 3])

    def _turned(self, tensor: str, cosines: str, sines: str) -> str:
        half = self.sizes.head // 2
        first = self._node("Slice", tensor, self._numbers(0), self._numbers(half), self._numbers(3))
        second = self._node("Slice", tensor, self._numbers(half), self._numbers(2 * half), self._numbers(3))
        across = self._node("Concat", self._node("Neg", second), first, axis=3)
        return self._node("Add", self._node("Mul", tensor, cosines), self._node("Mul", across, sines))

    def _repeated(self, tensor: str) -> str:
        """A head of keys or values for each head of queries that shares it."""
        sizes = self.sizes
        shares = sizes.heads // sizes.key_heads
        if shares == 1:
            return tensor
        parted = self._node("Unsqueeze", tensor, self._numbers(2))
        wide = self._node("Expand", parted, self._numbers(1, sizes.key_heads, shares, self.tokens, sizes.head))
        return self._shaped(wide, 1, sizes.heads, self.tokens, sizes.head)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
