"""LoRA files: which tensor of them belongs to which module of which network. All is read from the header.

Names are those of kohya-ss' sd-scripts (`networks/lora.py`), LyCORIS (`lycoris/wrapper.py`), diffusers and PEFT
(`lora_base.py`, `lora_conversion_utils.py`, and the older attention processors), with diffusers' or LDM's module names inside.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from axbake.checkpoints.containers import Container, UnreadableCheckpoint, form_of, open_safetensors
from axbake.digest import remembered
from axbake.errors import AxbakeError
from axbake.families.others import recognise
from axbake.jobs.known import code_of
from axbake.networks.component import Shapes
from axbake.printable import shown
from axbake.users_files import load_json

UNET = "unet"
#: What stands before a module's name -> the network that it is in; the UNet stands for a transformer too
PREFIXES = {
    "lora_unet_": "unet",
    "lycoris_": "unet",
    "unet.": "unet",
    "diffusion_model.": "unet",
    "down_blocks.": "unet",
    "mid_block.": "unet",
    "up_blocks.": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
    "transformer.": "unet",
    "lora_transformer_": "unet",
    "transformer_blocks.": "unet",
    "conv_in.": "unet",
    "conv_out.": "unet",
    "time_embedding.": "unet",
    "add_embedding.": "unet",
    "text_model.": "text_encoder",
    "text_conditioner.": "unet",
}
#: diffusers' name of a part that others count among the transformer's modules -> theirs
PARTS = {"text_conditioner.": "llm_adapter."}
#: Parts of the module's name, in files of the oldest diffusers and in those that PEFT wrote of one network
BARE = (
    "down_blocks.",
    "mid_block.",
    "up_blocks.",
    "conv_in.",
    "conv_out.",
    "time_embedding.",
    "add_embedding.",
    "text_model.",
    "transformer_blocks.",
)
#: What PEFT, torch.compile and data-parallel training put around modules, at the start of their names or inside
WRAPPERS = re.compile(r"(?:(?<=\.)|^)(?:base_model\.model|_orig_mod|_fsdp_wrapped_module|module)\.")
#: PEFT's name of the adapter, which stands behind what the tensor is: `lora_A.default.weight`
ADAPTER = re.compile(r"(\.lora_(?:A|B|magnitude_vector))\.(?!weight$)[^.]+(\.weight)?$")
BUNDLE = "bundle_emb."  # before the name of a textual-inversion embedding that a LoRA brings along
#: What stands behind it -> what the tensor is, in the names of LyCORIS
ROLES = {
    ".lora_linear_layer.down.weight": "lora_down",
    ".lora_linear_layer.up.weight": "lora_up",
    "_lora.down.weight": "lora_down",
    "_lora.up.weight": "lora_up",
    ".lora.down.weight": "lora_down",
    ".lora.up.weight": "lora_up",
    ".lora_A.weight": "lora_down",
    ".lora_B.weight": "lora_up",
    ".lora_down.weight": "lora_down",
    ".lora_up.weight": "lora_up",
    ".lora_mid.weight": "lora_mid",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_magnitude_vector": "magnitude",
    ".w_norm": "diff",
    ".b_norm": "diff_b",
    ".on_input": "on_input",
    ".weight": "ia3",
} | {
    f".{name}": name
    for name in (
        *("alpha", "dora_scale", "diff", "diff_b"),
        *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
        *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
    )
}
#: Channels of a token's embedding, which UNet and text encoder share -> the family
WIDTHS = {
    768: "Stable Diffusion 1.x",
    1024: "Stable Diffusion 2.x",
    1280: "Stable Diffusion XL",
    2048: "Stable Diffusion XL",
}
#: Beginning of names that files for transformers have -> the family
OTHERS = {
    r".*(double_blocks|single_blocks|single_transformer_blocks)": "FLUX",
    r".*joint_blocks|transformer\.transformer_blocks\.0\.attn\.add_": "Stable Diffusion 3",
    r"transformer\.|lora_transformer_|transformer_blocks\.": "a transformer of rectified flow",
}
SAYS = ("ss_base_model_version", "modelspec.architecture")  # entries of the metadata that name the family
TITLES = ("ss_output_name", "modelspec.title")
#: Modules, dots as underscores, that take tokens as wide as they are: of text encoders, of all others
TAKES_TOKENS = {True: r"self_attn_(q_proj|to_q)$", False: r"attn2_to_[kv]$|cross_attn_[kv]_proj$"}
PEFT_CONFIG = "lora_adapter_metadata"  # entry in the metadata of what diffusers writes
MOST_SHOWN = 12  # names in a message
FLOATS = ("F32", "F16", "BF16", "F64", "F8_E4M3", "F8_E5M2")
NUMBERS = ("alpha", "on_input")  # roles that may be whole numbers


class LoraError(AxbakeError):
    """A file is not a LoRA that can be fused into the checkpoint."""


@dataclass(frozen=True)
class Module:
    """What a file has for one module of a network."""

    name: str  # as the file has it, dots as underscores, without prefix
    tensors: Mapping[str, str] = field(default_factory=dict)  # role -> name in the file


@dataclass(frozen=True)
class LoraFile:
    """A LoRA's header, sorted."""

    container: Container
    modules: Mapping[str, Mapping[str, Module]]  # component -> name -> module
    embeddings: tuple[str, ...] = ()  # names of those that it bundles

    @property
    def path(self) -> Path:
        return self.container.path

    def shapes(self, module: Module) -> Shapes:
        return {role: self.container.tensors[name].shape for role, name in module.tensors.items()}


def read_lora(path: Path, denoiser: str = UNET) -> LoraFile:
    """The LoRA in a safetensors file; its tensors are not read.

    Args:
        denoiser: the component that it is for; files do not say which.

    Raises:
        LoraError: no LoRA, in another container, or made for a transformer, though the denoiser is a UNet.
    """
    try:
        form = form_of(path)
        if form != "safetensors":
            raise LoraError(f"{path}: a {form}: a pickle or a folder. Wanted the LoRA as one .safetensors file.")
        container = open_safetensors(path)
    except UnreadableCheckpoint as error:
        raise LoraError(str(error)) from error
    modules: dict[str, dict[str, Module]] = {}
    strange = []
    for key in sorted(container.tensors):
        place = _place(_unwrapped(key))
        if key.startswith(BUNDLE):
            continue
        if place is None:
            strange.append(key)
            continue
        component, name, role = place
        component = denoiser if component == UNET else component
        module = modules.setdefault(component, {}).setdefault(name, Module(name))
        if role in module.tensors:
            raise LoraError(f"{path}: {module.tensors[role]} and {key} are both the {role} of {name}.")
        if container.tensors[key].dtype not in FLOATS and role not in NUMBERS:
            raise LoraError(f"{path}: {key} is of type {container.tensors[key].dtype}; wanted {', '.join(FLOATS)}.")
        module.tensors[role] = key  # type: ignore[index]
    if denoiser == UNET:
        _refuse_others(container)
    if not modules:
        raise LoraError(
            f"{path}: not a LoRA: {listed(list(container.tensors))}.{_instead(container)} Wanted names such as "
            f"{', '.join(PREFIXES)}."
        )
    if strange:
        raise LoraError(
            f"{path}: {len(strange)} of {len(container.tensors)} tensors are of a kind that axbake cannot fuse: "
            f"{listed(strange)}. It fuses LoRA, LoCon, LoHa, LoKr, DoRA, (IA)³ and full differences of UNet and text "
            "encoders."
        )
    bundled = {key.split(".")[1] for key in container.tensors if key.startswith(BUNDLE)}
    return LoraFile(container, modules, tuple(sorted(bundled)))


def _instead(container: Container) -> str:
    """What a file is that has no module of a LoRA, as a sentence behind another one."""
    other = recognise(container.shapes)
    return f" It is {other.kind}." if other and other.kind not in ("a LoRA", "a LyCORIS") else ""


def _unwrapped(key: str) -> str:
    """A tensor's name without what wrappers of its network put into it."""
    return ADAPTER.sub(r"\1\2", WRAPPERS.sub("", key))


def _place(key: str) -> tuple[str, str, str] | None:
    """Component, module and role of a tensor; None if its name is of no layout."""
    prefix = next((start for start in PREFIXES if key.startswith(start)), None)
    ending = next((end for end in ROLES if key.endswith(end)), None)
    if prefix is None or ending is None:
        return None
    name = key.removesuffix(ending)
    name = name if prefix in BARE else PARTS.get(prefix, "") + name.removeprefix(prefix)
    return PREFIXES[prefix], name.replace(".processor.", ".").replace(".", "_"), ROLES[ending]


def _refuse_others(container: Container) -> None:
    names = [_unwrapped(key) for key in container.tensors]
    other = next((family for mark, family in OTHERS.items() if any(re.match(mark, name) for name in names)), None)
    if other:
        raise LoraError(
            f"{container.path}: a LoRA for {other}{_said(container)}; the checkpoint has a UNet. Give one"
            " that was made for it."
        )


def _said(container: Container) -> str:
    """What a file says of its family, for messages."""
    entries = [f"{name}: {shown(container.metadata[name], 60)}" for name in SAYS if container.metadata.get(name)]
    return f" (it says {', '.join(entries)})" if entries else ""


def listed(names: list[str]) -> str:
    """*names* for a message, the first few of many."""
    more = f" and {len(names) - MOST_SHOWN} more" if len(names) > MOST_SHOWN else ""
    return ", ".join(shown(name) for name in names[:MOST_SHOWN]) + more


@dataclass(frozen=True)
class LoraFacts:
    """What the workflow has to know of a LoRA before any job runs."""

    components: dict[str, list[str]]  # that it changes -> names of the modules, as the file has them
    lcm: bool  # whether it is one of latent consistency
    embeddings: list[str]  # names of textual-inversion embeddings that it bundles (`axbake.checkpoints.embeddings`)
    widths: dict[
        str, int
    ]  # component -> channels of a token that it was made for; without those where nothing takes one


def lora_facts(path: Path, denoiser: str = UNET) -> LoraFacts:
    """Facts of the LoRA *path* for a *denoiser*, from its header; remembered while the file is unchanged.

    Raises:
        LoraError: as `read_lora`.
    """

    def read() -> dict:
        lora = read_lora(path, denoiser)
        changed = {component: sorted(lora.modules[component]) for component in sorted(lora.modules)}
        return vars(LoraFacts(changed, looks_like_lcm(lora), list(lora.embeddings), context_widths(lora)))

    # What this code tells of a file is remembered no longer than the code is the same.
    code = code_of(f"{__name__}.read_lora")[__name__]
    return LoraFacts(**remembered(path, f"lora-{denoiser}-{code}", read))


def looks_like_lcm(lora: LoraFile) -> bool:
    """Whether a LoRA calls itself one of latent consistency, in its file's or folder's name or in its metadata.

    Nothing in its tensors tells.
    """
    names = [lora.path.stem, lora.path.parent.name, *(lora.container.metadata.get(name, "") for name in TITLES)]
    return any(re.search(r"(?<![a-z])lcm(?![a-z])", name, re.IGNORECASE) for name in names)


def context_widths(lora: LoraFile) -> dict[str, int]:
    """Channels of a token's embedding that the LoRA was made for, by component, as far as it changes what takes one."""
    found = {}
    for component, modules in lora.modules.items():
        takes = TAKES_TOKENS[component.startswith("text_")]
        taking = [module for name, module in modules.items() if re.search(takes, name)]
        if taking and (width := _taken(lora.shapes(taking[0]))):
            found[component] = width
    return found


def _taken(shapes: Shapes) -> int | None:
    """Channels that a module takes, by what a LoRA has for it."""
    for role in ("lora_down", "hada_w1_b", "diff"):
        if len(shapes.get(role, ())) >= 2:
            return shapes[role][1]
    first = shapes.get("lokr_w1") or shapes.get("lokr_w1_b")
    second = shapes.get("lokr_w2") or shapes.get("lokr_w2_b")
    return first[1] * second[1] if first and second and min(len(first), len(second)) >= 2 else None


def check_family(lora: LoraFile, *, component: str, width: int) -> None:
    """Raise LoraError unless the LoRA was made for a *component* whose tokens have *width* channels."""
    found = context_widths(lora).get(component)
    if found not in (None, width):
        raise LoraError(
            f"{lora.path}: made for {_family(found)}{_said(lora.container)}; the checkpoint is {_family(width)}."
            " Give a LoRA that was made for it."
        )


def _family(width: int | None) -> str:
    return f"{WIDTHS[width]} (context of {width} channels)" if width in WIDTHS else f"a context of {width} channels"


@dataclass(frozen=True)
class PeftConfig:
    """What PEFT's LoraConfig of one network says of the factors' scale."""

    alpha: float | None = None  # None: it does not say
    patterns: Mapping[str, tuple[int, float]] = field(
        default_factory=dict
    )  # end of a module's name -> rank of the entry, alpha
    rank_stabilised: bool = False

    def alpha_of(self, module: str) -> float | None:
        """alpha of a module by its name, dots as underscores: PEFT's own rule (`get_pattern_key`)."""
        ends = [module, *(module[match.end() :] for match in re.finditer("_", module))]
        found = [self.patterns[end] for end in ends if end in self.patterns]
        return min(found)[1] if found else self.alpha


def peft_config(lora: LoraFile, component: str) -> PeftConfig:
    """PEFT's config of *component*, which diffusers writes into the metadata; an empty one if it is not there.

    Raises:
        LoraError: it says of alpha what is not a number.
    """
    try:
        said = load_json(lora.container.metadata.get(PEFT_CONFIG, "{}"))
    except ValueError as error:
        raise LoraError(f"{lora.path}: metadata {PEFT_CONFIG}: {error}. Wanted a JSON object.") from None
    told = said if isinstance(said, dict) else {}
    alpha, patterns = told.get(f"{component}.lora_alpha"), told.get(f"{component}.alpha_pattern") or {}
    stabilised = told.get(f"{component}.use_rslora") or False
    numbers = [] if alpha is None else [alpha]
    numbers += patterns.values() if isinstance(patterns, dict) else []
    if not isinstance(patterns, dict) or not all(map(_is_number, numbers)) or not isinstance(stabilised, bool):
        raise LoraError(
            f"{lora.path}: metadata {PEFT_CONFIG}: lora_alpha {shown(alpha, 40)}, alpha_pattern {shown(patterns, 80)},"
            f" use_rslora {shown(stabilised, 40)}. Wanted a number, a table of numbers, and true or false, as PEFT writes them."
        )
    ends = {
        name.replace(".", "_"): (rank, float(value)) for rank, (name, value) in reversed([*enumerate(patterns.items())])
    }
    return PeftConfig(None if alpha is None else float(alpha), ends, stabilised)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9 and math.isfinite(value)  # type: ignore[arg-type]
