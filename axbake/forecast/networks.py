"""What one run of a network takes, counted from the shapes of its weights: no graph has to be exported for that."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from axbake.networks.component import DECODER, DENOISER, ENCODER, TEXT, Shapes
from axbake.runtime.tokenizer import TOKENS

FACTOR = 8  # pixels a side for one latent pixel
#: Of one run of Stable Diffusion 1.5 at 512 × 512, for networks that nobody can read yet: parameters, multiplications, tensors
TYPICAL = {
    TEXT: (123.1e6, 6.65e9, 74),
    DENOISER: (859.5e6, 401.6e9, 282),
    ENCODER: (34.2e6, 558.3e9, 32),
    DECODER: (49.5e6, 1257.3e9, 40),
}
TYPICAL_PIXELS = 512 * 512


@dataclass(frozen=True)
class Network:
    """One network at one picture size."""

    role: str
    parameters: float
    macs: float  # multiplications of one run
    tensors: float  # of weights: about how many operators that take time it has
    graphs: int = 1  # that it becomes, of about the same size

    @property
    def graph(self) -> "Network":
        """One of its graphs."""
        return Network(self.role, self.parameters / self.graphs, self.macs / self.graphs, self.tensors / self.graphs)


def typical_network(role: str, *, height: int, width: int) -> Network:
    """What a network of *role* takes whose file is not here yet, as Stable Diffusion 1.5's."""
    parameters, macs, tensors = TYPICAL[role]
    share = 1.0 if role == TEXT else height * width / TYPICAL_PIXELS
    return Network(role, parameters, macs * share, tensors)


def network_of(shapes: Shapes, role: str, *, height: int, width: int, prompt_chunks: int) -> Network:
    """What the network whose weights have these *shapes* takes.

    Args:
        shapes: by diffusers' names; biases and norms do not matter.
        height, width: of the picture, in pixels.
        prompt_chunks: chunks of tokens that a denoiser takes.
    """
    weights = {name: shape for name, shape in shapes.items() if name.endswith(".weight")}
    context = prompt_chunks * TOKENS
    positions = _text_positions if role == TEXT else _Levels(weights, role, height * width).positions
    macs = 0.0
    for name, shape in weights.items():
        places = positions(name)
        if len(shape) < 2 or "_emb" in name:  # rows of a table; what is computed once a step
            continue
        crossing = ".attn2.to_k." in name or ".attn2.to_v." in name
        macs += math.prod(shape) * (context if crossing else places)
        if re.search(r"\.(to_q|q_proj)\.weight$", name):  # each place with each: their likeness, and the sum
            macs += 2 * shape[0] * places * (context if ".attn2." in name else places)
    return Network(role, sum(map(math.prod, shapes.values())), macs, sum(len(s) > 1 for s in weights.values()))


def _text_positions(name: str) -> int:
    return TOKENS


class _Levels:
    """At how many places of a picture, or latent, each weight of a UNet or autoencoder is applied.

    Args:
        pixels: of the picture.
    """

    def __init__(self, weights: Mapping[str, tuple[int, ...]], role: str, pixels: int):
        self.role = role
        self.top = pixels / FACTOR**2 if role == DENOISER else pixels  # places at the first level
        numbers = [int(m[2]) for name in weights if (m := re.search(r"(down|up)_blocks\.(\d+)\.", name))]
        self.last = max(numbers, default=0)  # number of the lowest level
        # AutoencoderTiny's layers are one sequence; all its convolutions but the first and the last halve or follow a doubling.
        plain = sorted(int(m[1]) for name in weights if (m := re.search(r"coder\.layers\.(\d+)\.weight$", name)))
        self.between = plain[1:-1]

    def positions(self, name: str) -> float:
        """Places at which the weight *name* is applied."""
        return self.top / 4 ** self._level(name)

    def _level(self, name: str) -> int:
        """How often the picture has been halved there."""
        if found := re.search(r"down_blocks\.(\d+)\.(downsamplers)?", name):
            return int(found[1]) + bool(found[2])
        if found := re.search(r"up_blocks\.(\d+)\.(upsamplers)?", name):
            return self.last - int(found[1]) - bool(found[2])
        if found := re.search(r"coder\.layers\.(\d+)\.", name):
            passed = sum(number <= int(found[1]) for number in self.between)
            return passed if self.role == ENCODER else len(self.between) - passed
        at_top = {DENOISER: ("conv_in", "conv_out"), ENCODER: ("encoder.conv_in",), DECODER: ("decoder.conv_out",)}
        if name.startswith(at_top[self.role]):
            return 0
        return self.last
