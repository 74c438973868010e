"""LoRAs fused into a network's weights, one tensor at a time.

The mathematics are those of `lycoris.functional` (github KohakuBlueleaf/LyCORIS). A LoRA of strength s turns the weight W into
W + s (f(W) - W), where f is the LoRA at full strength. Several are applied one after the other. That is what AUTOMATIC1111's
web UI does (`extensions-builtin/Lora/networks.py`) and ComfyUI; of a plain LoRA it is W + s alpha / rank * up @ down.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from lycoris.functional import general, locon, loha, lokr

from axbake.checkpoints.containers import all_finite
from axbake.loras.files import LoraError, LoraFile, Module, PeftConfig, check_family, listed, peft_config, read_lora
from axbake.loras.names import Target, own_names, spellings
from axbake.networks.component import DENOISER, Component, Shapes

Tensors = Mapping[str, torch.Tensor]  # role -> tensor, float32
MOST_SHOWN = 8  # faults in a message
# What torch and LyCORIS raise on tensors that do not go together, and what a file's metadata may lead to
DAMAGE = (ValueError, RuntimeError, LookupError, ArithmeticError, TypeError)


@dataclass(frozen=True)
class Kind:
    """One way of storing a change of weights."""

    title: str
    one_of: tuple[frozenset[str], ...]  # roles that make it; one of these sets is there as a whole
    others: frozenset[str]  # roles that may be there too
    rank: tuple[str, ...]  # roles whose first axis is the rank, the first one that is there; it divides alpha
    delta: Callable[
        [Tensors, torch.Tensor, float], torch.Tensor
    ]  # tensors, weight, alpha / rank -> change of the weight


def _lora(t: Tensors, weight: torch.Tensor, scale: float) -> torch.Tensor:
    return locon.diff_weight(t["lora_down"], t["lora_up"], t.get("lora_mid"), gamma=scale, backend="torch")


def _loha(t: Tensors, weight: torch.Tensor, scale: float) -> torch.Tensor:
    factors = (t["hada_w1_b"], t["hada_w1_a"], t["hada_w2_b"], t["hada_w2_a"], t.get("hada_t1"), t.get("hada_t2"))
    return loha.diff_weight(*factors, gamma=1.0, backend="torch") * scale


def _lokr(t: Tensors, weight: torch.Tensor, scale: float) -> torch.Tensor:
    roles = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
    factors = [t.get(role) for role in roles]
    # Without spatial axes in its own factor, a convolution's kernel is in the columns of w2_b.
    return lokr.kron_weight(*factors, scale=scale, backend="torch")


def _ia3(t: Tensors, weight: torch.Tensor, scale: float) -> torch.Tensor:
    channels = t["ia3"].flatten()
    axis = 1 if float(t["on_input"]) else 0
    return weight * channels.reshape([-1 if number == axis else 1 for number in range(weight.ndim)])


def _roles(text: str) -> frozenset[str]:
    return frozenset(text.split())


KINDS = (
    Kind(
        "LoRA",
        (_roles("lora_down lora_up"),),
        _roles("lora_mid alpha dora_scale magnitude"),
        ("lora_down",),
        _lora,
    ),
    Kind(
        "LoHa",
        tuple(_roles(f"hada_w1_a hada_w1_b hada_w2_a hada_w2_b {middle}") for middle in ("", "hada_t1 hada_t2")),
        _roles("alpha dora_scale"),
        ("hada_w1_b",),
        _loha,
    ),
    Kind(
        "LoKr",
        tuple(
            _roles(f"{first} {second}")
            for first in ("lokr_w1", "lokr_w1_a lokr_w1_b")
            for second in ("lokr_w2", "lokr_w2_a lokr_w2_b", "lokr_w2_a lokr_w2_b lokr_t2")
        ),
        _roles("alpha dora_scale"),
        ("lokr_w1_b", "lokr_w2_b"),
        _lokr,
    ),
    Kind("(IA)³", (_roles("ia3 on_input"),), _roles(""), (), _ia3),
    Kind("a full difference", (_roles("diff"),), _roles(""), (), lambda t, weight, scale: t["diff"]),
)
BIAS = "diff_b"  # beside a kind, or alone


@dataclass(frozen=True)
class Change:
    """What one LoRA does to one tensor."""

    lora: LoraFile
    module: Module
    kind: Kind | None  # None: a bias
    strength: float
    config: PeftConfig  # of the whole component
    target: Target

    def delta(self, weight: torch.Tensor) -> torch.Tensor:
        """What is to be added to *weight*, float32; on the meta device only its shape is computed."""
        if self.target.parts == 1:
            return self._whole(weight)
        if self.kind and not {"dora_scale", "magnitude", "ia3"}.isdisjoint(self.module.tensors):
            raise ValueError("it needs the weights of several modules together")
        rows = weight.shape[0] // self.target.span
        whole = self._whole(torch.empty((rows * self.target.parts, *weight.shape[1:]), device=weight.device))
        return whole[self.target.first * rows : (self.target.first + self.target.span) * rows]

    def _whole(self, weight: torch.Tensor) -> torch.Tensor:
        tensors = {role: self._read(role, weight) for role in self.module.tensors}
        if self.kind is None:
            return _shaped(tensors[BIAS], weight) * self.strength
        scale = self._scale(tensors)
        delta = _shaped(self.kind.delta(tensors, weight, scale), weight)
        if "dora_scale" in tensors or "magnitude" in tensors:
            delta = _decomposed(weight + delta, tensors) - weight
        return delta * self.strength

    def _read(self, role: str, weight: torch.Tensor) -> torch.Tensor:
        name = self.module.tensors[role]
        shape = self.lora.container.tensors[name].shape
        if weight.is_meta and math.prod(shape) > 1:
            return torch.empty(shape, device="meta")
        tensor = self.lora.container.read(name).float()
        if not all_finite(tensor):
            raise LoraError(f"{self.lora.path}: {name} holds values that are not finite. The file is damaged.")
        return tensor

    def _scale(self, tensors: Tensors) -> float:
        """alpha / rank; 1 where nothing says what alpha is, as for diffusers."""
        assert self.kind
        rank = next((tensors[role].shape[0] for role in self.kind.rank if role in tensors), None)
        if rank is None:
            return 1.0
        if "alpha" in tensors:
            return float(tensors["alpha"]) / rank
        alpha = self.config.alpha_of(self.module.name)
        alpha = rank if alpha is None else alpha
        return alpha / (math.sqrt(rank) if self.config.rank_stabilised else rank)


def _shaped(delta: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """*delta* in the shape of *weight*: a matrix may come as a 1×1 convolution, a kernel as columns."""
    same = delta.shape[:1] == weight.shape[:1] and delta.numel() == weight.numel()
    if not same or (delta.ndim > 2 and weight.ndim > 2 and delta.shape != weight.shape):
        raise ValueError(f"a change of shape {tuple(delta.shape)}")
    return delta.reshape(weight.shape)


def _decomposed(weight: torch.Tensor, tensors: Tensors) -> torch.Tensor:
    """*weight* with the lengths of its rows, or of its columns, that DoRA learnt."""
    length = tensors.get("dora_scale", tensors.get("magnitude"))
    assert length is not None
    # PEFT's are always of rows, as (out,) or (1, out, 1, 1); LyCORIS' of the axis that is not 1.
    of_rows = "magnitude" in tensors or length.shape[0] == weight.shape[0]
    axis = 0 if of_rows else 1
    if length.numel() != weight.shape[axis]:
        raise ValueError(f"{length.numel()} lengths of {'rows' if of_rows else 'columns'}")
    length = length.reshape([-1 if number == axis else 1 for number in range(weight.ndim)])
    return general.weight_decompose(weight, length, wd_on_out=of_rows, backend="torch")


class Fusion:
    """What the LoRAs of a model do to one of its networks."""

    def __init__(
        self, component: Component, shapes: Shapes, loras: Sequence[tuple[Path, float]], *, width: int
    ) -> None:
        """Sort the LoRAs' tensors; only headers are read.

        Args:
            component: one that LoRAs change (`Files.lora_names`).
            shapes: of the network's tensors, by diffusers' names.
            loras: files, which are applied in this order, and their strengths.
            width: channels of a token's embedding.

        Raises:
            LoraError: a file is no LoRA, was made for another network, or changes a module in a way that cannot be used.
        """
        self._changes: dict[str, list[Change]] = {}
        table = spellings(component.files, shapes)
        for path, strength in loras:
            within, _ = component.files.lora_within or ("", ())
            lora = read_lora(path, within or (component.name if component.role == DENOISER else ""))
            check_family(lora, component=component.name, width=width)
            config = peft_config(lora, component.name)
            found = lora.modules.get(within or component.name, {})
            modules = [found[name] for name in own_names(component.files, component.name, lora.modules)]
            # As web UIs do with a network that was made smaller; `axbake.advice` tells which these are.
            there = [module for module in modules if module.name in table]
            faults = [fault for module in there for fault in self._take(lora, module, strength, table, shapes, config)]
            if modules and not there:
                names = [name for module in modules for name in module.tensors.values()]
                faults = [f"{listed(names)}: the network has no such module"]
            if faults:
                more = f"; and {len(faults) - MOST_SHOWN} more" if len(faults) > MOST_SHOWN else ""
                raise LoraError(
                    f"{path}: {component.name}: {len(faults)} of its modules do not fit the checkpoint's:"
                    f" {'; '.join(faults[:MOST_SHOWN])}{more}."
                    " Give a LoRA that was made for this kind of checkpoint."
                )

    def _take(
        self,
        lora: LoraFile,
        module: Module,
        strength: float,
        table: Mapping[str, tuple[Target, ...]],
        shapes: Shapes,
        config: PeftConfig,
    ) -> list[str]:
        """Keep what *module* changes; what of it cannot be used, in words."""
        names = list(module.tensors.values())
        roles = frozenset(module.tensors) - {BIAS}
        kind = next((kind for kind in KINDS if any(some <= roles <= some | kind.others for some in kind.one_of)), None)
        if roles and kind is None:
            return [f"{listed(names)}: together they are neither {', '.join(kind.title for kind in KINDS)}"]
        faults = []
        targets = table[module.name]
        wanted: list[tuple[str, Kind | None, Target]] = []
        wanted += [(f"{target.module}.weight", kind, target) for target in targets if kind]
        wanted += [(f"{target.module}.bias", None, target) for target in targets if BIAS in module.tensors]
        for name, kind_of, target in wanted:
            change = Change(lora, module, kind_of, strength, config, target)
            if name not in shapes:
                faults.append(f"{listed(names)}: the network has no {name}")
                continue
            try:
                change.delta(torch.empty(shapes[name], device="meta"))
            except DAMAGE as error:
                found = ", ".join(f"{module.tensors[role]} {shape}" for role, shape in lora.shapes(module).items())
                faults.append(f"{found}: no change of {name} {shapes[name]} ({str(error).splitlines()[0][:120]})")
                continue
            self._changes.setdefault(name, []).append(change)
        return faults

    def changes(self, name: str) -> bool:
        """Whether tensor *name* of the network is changed."""
        return name in self._changes

    def precisions(self, stored: Mapping[str, str]) -> dict[str, str]:
        """Types to write tensors in, by the types that they are *stored* in: bfloat16 has no digits for small changes."""
        return {name: "F32" if self.changes(name) and kind == "BF16" else kind for name, kind in stored.items()}

    def reader(self, read: Callable[[str], torch.Tensor]) -> Callable[[str], torch.Tensor]:
        """A function as *read*, which gives the network's tensors by name, with the changes in them."""
        return lambda name: self.apply(name, read(name))

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """Tensor *name* with all changes: computed in float32, in the type that `precisions` says.

        Raises:
            LoraError: the result is not finite, or too large for the type.
        """
        if not self.changes(name):
            return tensor
        weight = tensor.float()
        for change in self._changes[name]:
            weight = weight + change.delta(weight)
        result = weight if tensor.dtype == torch.bfloat16 else weight.to(tensor.dtype)
        if not torch.isfinite(result).all():
            paths = ", ".join(str(change.lora.path) for change in self._changes[name])
            raise LoraError(
                f"{paths}: makes {name} too large, up to {float(weight.abs().max()):g}. Give a lower strength in the"
                " column loras; or the file is damaged."
            )
        return result
