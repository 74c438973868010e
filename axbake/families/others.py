"""Files that are something else than a checkpoint axbake bakes, told by names and shapes of their tensors.

A whole network decides what a file is. Only where there is none do single tensors count: those of LoRAs, adapters and embeddings,
which merges and trainers leave in checkpoints too.

The marks are those by which the loaders of diffusers (`single_file_utils.py`), ComfyUI (`model_detection.py`), InvokeAI
(`model_on_disk.py`, `configs/main.py`) and stable-diffusion.cpp (`model_loader.cpp`, `get_sd_version`) tell them apart, and names
of diffusers' own classes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from axbake.networks.component import Shape, Shapes

NOT_YET = "axbake does not support it yet. Take a checkpoint of a known family."
NO_UNET = "It is a rectified-flow transformer, not a UNet: axbake does not support it yet."
FILMS = "It makes videos, but axbake's graphs draw pictures."
LORA = (
    "It changes a checkpoint but is not one: put it into the column loras, beside the checkpoint that it was made for."
)
WORD = "It is a word for prompts; give the checkpoint that it was trained with."
QUANTISED = "Pulsar2 does the quantisation itself, from fp16 or more; give the checkpoint that it was made from."
PART = "Give the whole checkpoint that it is a part of."
MOST_PARTS = 9  # of a mark's name, between its dots


@dataclass(frozen=True)
class Other:
    """A kind of file."""

    kind: str  # with its article
    sentence: str  # what can be done with it


Pattern = tuple[int | None, ...]  # of a shape: its first sizes; None: any


@dataclass(frozen=True)
class Network:
    """What a whole network has and others have not."""

    other: Other
    marks: Mapping[str, Pattern]  # tensors that it has, all behind one prefix, with their shapes
    absent: tuple[str, ...] = ()  # tensors that it has not
    elsewhere: tuple[str, ...] = ()  # tensors that the file has behind other prefixes


def _network(
    kind: str, *marks: str, sentence: str = NO_UNET, absent: tuple[str, ...] = (), **shapes: Pattern
) -> Network:
    """A network that has *marks*; *shapes*: of the first of them, as `first`."""
    table = {mark: shapes.get("first", ()) if number == 0 else () for number, mark in enumerate(marks)}
    return Network(Other(kind, sentence), table, absent)


OURS = Other("", "")  # a transformer that one of the families bakes
FLUX2 = "a FLUX.2 checkpoint"
QWEN_IMAGE = "transformer_blocks.0.img_mod.1.weight"
SD3_DIFFUSERS = ("pos_embed.pos_embed", "transformer_blocks.0.attn.add_q_proj.weight", "norm_out.linear.weight")
#: The first that fits counts, so the narrower stand before the wider. Names of their authors' files, then diffusers'.
NETWORKS = (
    _network("a FLUX.3 checkpoint", "early_stream_modulations.image.linear.weight"),
    Network(OURS, {"double_stream_modulation_img.lin.weight": ()}),
    Network(OURS, {"double_stream_modulation_img.linear.weight": ()}),
    _network(FLUX2, "single_stream_modulation.lin.weight"),
    _network("a Chroma checkpoint", "distilled_guidance_layer.norms.0.scale"),
    _network("a Chroma checkpoint", "distilled_guidance_layer.in_proj.weight"),
    _network("a HunyuanVideo or HunyuanImage checkpoint", "txt_in.individual_token_refiner.blocks.0.norm1.weight"),
    _network(
        "a HunyuanVideo or HunyuanImage checkpoint", "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight"
    ),
    _network("an Ovis-Image checkpoint", "double_blocks.0.img_mlp.gate_proj.weight"),
    _network("an Ovis-Image checkpoint", "context_embedder_norm.weight", "single_transformer_blocks.0.proj_mlp.weight"),
    _network("a LongCat-Image checkpoint", "txt_in.weight", "double_blocks.0.img_attn.qkv.weight", first=(3072, 3584)),
    _network(
        "a LongCat-Image checkpoint",
        "context_embedder.weight",
        "time_embed.timestep_embedder.linear_1.weight",
        "single_transformer_blocks.0.proj_mlp.weight",
        first=(3072, 3584),
    ),
    _network(
        "a Bria checkpoint",
        "time_embed.timestep_embedder.linear_1.weight",
        "single_transformer_blocks.0.proj_mlp.weight",
    ),
    *(
        _network("a FLUX.1 checkpoint for inpainting, edges or depth", mark, first=(None, channels))
        for mark in ("img_in.weight",)
        for channels in (128, 384)
    ),
    Network(
        OURS,
        {
            "double_blocks.0.img_attn.qkv.weight": (),
            "single_blocks.0.linear1.weight": (),
            "vector_in.in_layer.weight": (),
        },
        absent=("controlnet_blocks.0.weight",),
    ),
    *(
        _network("a FLUX checkpoint", mark, absent=("controlnet_blocks.0.weight",))
        for mark in (
            "double_blocks.0.img_attn.norm.key_norm.scale",
            "double_blocks.0.img_attn.norm.key_norm.weight",
            "double_blocks.0.img_attn.qkv.weight",
            "single_blocks.0.linear1.weight",
        )
    ),
    _network("an AuraFlow checkpoint", "double_layers.0.attn.w1q.weight"),
    _network("an AuraFlow checkpoint", "joint_transformer_blocks.0.attn.to_q.weight"),
    Network(
        OURS,
        dict.fromkeys(
            (
                "single_transformer_blocks.0.proj_mlp.weight",
                "transformer_blocks.0.attn.add_q_proj.weight",
                "norm_out.linear.weight",
            ),
            (),
        ),
    ),
    Network(OURS, {"joint_blocks.0.x_block.attn.qkv.weight": (), "joint_blocks.0.context_block.attn.qkv.weight": ()}),
    Network(OURS, dict.fromkeys(SD3_DIFFUSERS, ())),
    _network("a Mage-Flow checkpoint", "txt_norm.weight", first=(2560,)),
    _network("a Lens checkpoint", "transformer_blocks.0.img_mlp.w1.weight"),
    _network(
        "a Nucleus-Image checkpoint",
        "transformer_blocks.0.encoder_proj.weight",
        QWEN_IMAGE,
    ),
    _network("a Qwen-Image 2.1 checkpoint", "txt_in.text_norm.weight"),
    _network("a Qwen-Image-Layered checkpoint", "time_text_embed.addition_t_embedding.weight", QWEN_IMAGE),
    _network("a Qwen-Image-Edit checkpoint", "__index_timestep_zero__", QWEN_IMAGE),
    Network(OURS, {QWEN_IMAGE: (), "txt_norm.weight": (), "img_in.weight": ()}),
    _network("a part of a Qwen-Image checkpoint", QWEN_IMAGE, sentence=PART),
    _network("a NewBie checkpoint", "clip_text_pooled_proj.0.weight", "cap_embedder.1.weight"),
    _network("a Ming-Image checkpoint", "__ming_image__"),
    _network("a Z-Image Omni checkpoint", "siglip_embedder.0.weight", "cap_pad_token"),
    _network("a Z-Image checkpoint that draws in pixels", "dec_net.cond_embed.weight", "cap_pad_token"),
    Network(OURS, {"cap_embedder.1.weight": (), "cap_pad_token": (), "x_pad_token": ()}),
    _network("a Ming-Image checkpoint", "cap_embedder.1.weight", "layers.0.attention.qkv.weight", first=(3840,)),
    _network(
        "an OmniGen2 checkpoint", "ref_image_patch_embedder.weight", "time_caption_embed.caption_embedder.1.weight"
    ),
    _network("an OmniGen2 checkpoint", "time_caption_embed.caption_embedder.1.weight", first=(2520,)),
    Network(OURS, {"layers.0.adaLN_modulation.1.weight": (), "layers.0.attention.qkv.weight": ()}),
    Network(OURS, {"time_caption_embed.caption_embedder.1.weight": (), "layers.0.attn.to_q.weight": ()}),
    _network("a checkpoint of Lumina-Image 2 or Z-Image", "cap_embedder.1.weight"),
    _network("a checkpoint of Lumina-Image 2 or OmniGen2", "time_caption_embed.caption_embedder.1.weight"),
    Network(OURS, {"llm_adapter.blocks.0.cross_attn.q_proj.weight": (), "x_embedder.proj.1.weight": ()}),
    Network(
        OURS,
        {"patch_embed.proj.weight": (None, 68), "transformer_blocks.0.norm1.linear_1.weight": ()},
        elsewhere=("embed.weight", "blocks.0.cross_attn.q_proj.weight"),
    ),
    _network("a part of an Anima checkpoint", "llm_adapter.blocks.0.cross_attn.q_proj.weight", sentence=PART),
    _network("a Cosmos-Predict2 checkpoint", "blocks.0.mlp.layer1.weight"),
    _network(
        "a Cosmos-Predict2 checkpoint (Anima's transformer is one)",
        "patch_embed.proj.weight",
        "transformer_blocks.0.norm1.linear_1.weight",
        first=(None, 68),
    ),
    _network("a Cosmos checkpoint", "blocks.block0.blocks.0.block.attn.to_q.0.weight", sentence=FILMS),
    _network("a PixArt-α checkpoint", "ar_embedder.mlp.0.weight", "t_block.1.weight"),
    _network("an LTX-Video checkpoint", "patchify_proj.weight", sentence=FILMS),
    _network(
        "an LTX-Video checkpoint",
        "time_embed.emb.timestep_embedder.linear_1.weight",
        "proj_in.weight",
        "transformer_blocks.0.attn1.norm_q.weight",
        sentence=FILMS,
    ),
    _network("a PixArt checkpoint", "t_block.1.weight"),
    _network(
        "a PixArt-α checkpoint",
        "pos_embed.proj.weight",
        "adaln_single.emb.resolution_embedder.linear_1.weight",
        first=(1152, None, 2, 2),
    ),
    _network("a PixArt checkpoint", "pos_embed.proj.weight", "adaln_single.linear.weight", first=(1152, None, 2, 2)),
    _network("a Hunyuan-DiT checkpoint", "mlp_t5.0.weight"),
    _network("a Hunyuan-DiT checkpoint", "time_extra_emb.extra_embedder.linear_1.weight"),
    _network("a Sana checkpoint", "blocks.0.cross_attn.q_linear.weight"),
    _network("a Sana checkpoint", "transformer_blocks.0.ff.conv_inverted.weight"),
    _network("a HiDream checkpoint", "double_stream_blocks.0.block.adaLN_modulation.1.bias"),
    _network("a HiDream checkpoint", "caption_projection.0.linear.weight"),
    _network("a Wan checkpoint", "head.modulation", sentence=FILMS),
    _network(
        "a Wan checkpoint",
        "condition_embedder.text_embedder.linear_1.weight",
        "blocks.0.attn1.to_q.weight",
        sentence=FILMS,
    ),
    _network("a Krea 2 checkpoint", "txtfusion.projector.weight"),
    _network("a Krea 2 checkpoint", "text_fusion.projector.weight"),
    _network("an ERNIE-Image checkpoint", "layers.0.adaLN_sa_ln.weight"),
    _network("an ERNIE-Image checkpoint", "layers.0.mlp.linear_fc2.weight"),
    _network("a GLM-Image checkpoint", "glyph_projector.net.0.proj.weight"),
    _network(
        "a CogView checkpoint",
        "patch_embed.text_proj.weight",
        "time_condition_embed.condition_embedder.linear_1.weight",
    ),
    _network("a CogVideoX checkpoint", "patch_embed.text_proj.weight", sentence=FILMS),
    _network("a Kandinsky 5 checkpoint", "visual_transformer_blocks.0.self_attention.to_query.weight"),
    _network("a PRX checkpoint", "blocks.0.attention.img_qkv_proj.weight"),
    _network("a Stable Cascade checkpoint", "clf.1.weight", sentence=NOT_YET),
    _network("Anima's text adapter", "blocks.0.cross_attn.q_proj.weight", "embed.weight", sentence=PART),
)
#: A UNet whole enough to draw: a tensor of its way down and one of its way up
UNETS = (
    ("input_blocks.0.0.weight", "output_blocks.0.0.in_layers.2.weight"),
    ("time_embedding.linear_1.weight", "up_blocks.0.resnets.0.conv1.weight"),
)
SVD = Other("a Stable Video Diffusion checkpoint", FILMS)
MOTION = Other("an AnimateDiff motion module", "It makes videos with a checkpoint, but axbake's graphs draw pictures.")
#: What a UNet has that is not of Stable Diffusion 1.x or 2.x
UNET_KINDS: Mapping[str, Other] = {
    "input_blocks.1.0.time_stack.in_layers.0.weight": SVD,
    "input_blocks.1.1.time_mixer.mix_factor": SVD,
    "down_blocks.0.resnets.0.temporal_res_block.norm1.weight": SVD,
    "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": MOTION,
    "down_blocks.0.motion_modules.0.norm.weight": MOTION,
    "encoder_hid_proj.weight": Other("a Kolors checkpoint", NOT_YET),
}
CONDITIONED = ("label_emb.0.0.weight", "add_embedding.linear_1.weight")  # by more than the prompt's tokens: SDXL's
#: Columns of that tensor in UNets of others than Stable Diffusion XL's
CONDITIONS = {
    1536: Other("a Stable unCLIP checkpoint", NOT_YET),
    2048: Other("a Stable unCLIP checkpoint", NOT_YET),
    2560: Other(
        "a Stable Diffusion XL refiner checkpoint",
        "It refines pictures of Stable Diffusion XL, which also works without it; give the base checkpoint.",
    ),
}
#: Tensors beside a UNet of Stable Diffusion XL's structure that draws in another way -> what it is
SPACES = {
    "edm_mean": Other("a Playground v2.5 checkpoint", f"{NOT_YET} Its latents and its noise differ from SDXL's."),
    "edm_vpred.sigma_max": Other("a CosXL checkpoint", f"{NOT_YET} Its noise differs from SDXL's."),
}
A_VAE = Other("a VAE", "It decodes what a checkpoint draws; give that checkpoint, and this in the column vae.")
A_TAESD = Other("a TAESD (AutoencoderTiny)", "It is a small VAE; give a checkpoint, and this in the column vae.")
OTHER_FAMILY = "It belongs to checkpoints of that family: give one of these, and this in the column vae."
WIDE_VAES = {
    16: Other("a VAE of 16 channels (Stable Diffusion 3, FLUX, Z-Image, Lumina-Image 2)", OTHER_FAMILY),
    32: Other("a VAE of 32 channels (FLUX.2, Sana)", OTHER_FAMILY),
}
FILM_VAE = Other("a VAE of Qwen-Image, Anima or Wan", OTHER_FAMILY)
AUTOENCODERS = (A_VAE, A_TAESD, *WIDE_VAES.values(), FILM_VAE)
VAE_MARKS = ("decoder.conv_in.weight", "decoder.conv_out.weight")
TEXT_MARKS = ("embeddings.token_embedding.weight", "encoder.layers.0.self_attn.q_proj.weight")
#: What only files of one kind have, anywhere in their names, before which a dot is put; for files without a whole network
ADDITIONS: tuple[tuple[Other, tuple[str, ...]], ...] = (
    (
        Other("a LoRA", LORA),
        (
            *(".lora_up.weight", ".lora_down.weight", ".lora.up.weight", ".lora.down.weight"),
            *("_lora.up.weight", "_lora.down.weight", ".lora_A.", ".lora_B.", ".lora_linear_layer."),
        ),
    ),
    (
        Other("a LyCORIS", LORA),
        (
            *(".hada_w1_a", ".lokr_w1", ".oft_blocks", ".oft_diag", ".boft"),
            *(".lora_unet_", ".lora_te_", ".lora_te1_", ".lora_te2_", ".lora_transformer_", ".lycoris_"),
        ),
    ),
    (
        Other(
            "a ControlNet", "It guides a checkpoint's UNet through further inputs, which axbake's graphs do not have."
        ),
        (
            *(".control_model.", ".controlnet_cond_embedding.", ".controlnet_mid_block.", ".controlnet_blocks."),
            *(".adapter.body.0.", ".input_hint_block.0.", ".zero_convs.0.", ".lora_controlnet"),
        ),
    ),
    (
        Other("an IP-Adapter", "It needs inputs that axbake's graphs do not have."),
        (".ip_adapter.", ".image_proj.", ".to_k_ip."),
    ),
    (MOTION, (".motion_modules.",)),
    (Other("a textual-inversion embedding", WORD), (".emb_params", ".string_to_param")),
    (SVD, (".time_stack.", ".time_mixer.")),
    (Other("an upscaler (ESRGAN)", NOT_YET), (".RDB1.conv1.", ".body.0.rdb1.conv1.")),
)
GEMMA = "layers.0.post_feedforward_layernorm.weight"
#: What is a part of checkpoints, by the tensors that such parts have
PARTS = (
    _network("a text encoder (T5)", "encoder.block.0.layer.0.SelfAttention.q.weight", sentence=PART),
    _network("a text encoder (Gemma 3)", GEMMA, "layers.0.self_attn.q_norm.weight", sentence=PART),
    _network("a text encoder (Gemma 2)", GEMMA, sentence=PART),
    _network("a text encoder (Qwen 3)", "layers.0.self_attn.q_norm.weight", "embed_tokens.weight", sentence=PART),
    _network("a text encoder (Qwen 2.5 VL)", "layers.0.self_attn.k_proj.bias", "embed_tokens.weight", sentence=PART),
    _network("a language model", "layers.0.self_attn.q_proj.weight", "embed_tokens.weight", sentence=PART),
    _network("an image encoder", "vision_model.embeddings.patch_embedding.weight", sentence=PART),
    Network(FILM_VAE, {"decoder.middle.0.residual.0.gamma": ()}),
    Network(SVD, {"decoder.mid_block.resnets.0.temporal_res_block.norm1.weight": ()}),
)  # fmt: skip
SDXL = ("conditioner.embedders.1.", "add_embedding.linear_1.weight", "label_emb.0.0.weight", "text_encoder_2.")
TAESD_MARKS = ("encoder.layers.0.weight", "decoder.layers.0.weight", "decoder.layers.1.weight")
KNOWN = frozenset(
    {mark for network in (*NETWORKS, *PARTS) for mark in (*network.marks, *network.absent, *network.elsewhere)}
    | {mark for marks in UNETS for mark in marks}
    | {
        *UNET_KINDS,
        *CONDITIONED,
        *VAE_MARKS,
        "encoder.conv_in.weight",
        *TEXT_MARKS,
        *TAESD_MARKS,
        "token_embedding.weight",
    }
)
Found = Mapping[str, Mapping[str, Shape]]  # mark -> what stands before it in the file -> shape of the tensor


def recognise(shapes: Shapes) -> Other | None:
    """What a file of these tensors is, if it is no checkpoint that axbake bakes; None if it may be one."""
    if quantised := _quantised(shapes):
        return quantised
    found = _marks(shapes)
    for way_down, way_up in UNETS:
        for prefix in found.get(way_down, {}):
            if prefix in found.get(way_up, {}):
                return _unet(shapes, found, prefix)
    added, count = _added(shapes)
    if count <= len(shapes) / 2 and (network := _first(NETWORKS, found)):
        return None if network is OURS else network
    pieces = any(mark in found for mark, _ in UNETS) or any(mark in name for name in shapes for mark in SDXL)
    if not pieces and all(mark in found for mark in VAE_MARKS):
        return _first(PARTS, found) or _vae(found)
    if not pieces and all(mark in found for mark in TEXT_MARKS):
        return Other("a text encoder", PART)
    return added or _piece(shapes, found)


def _added(shapes: Shapes) -> tuple[Other | None, int]:
    """What is added to networks, by the first of ADDITIONS that any tensor is of; and how many tensors are of one."""
    kinds = [
        number
        for name in shapes
        for number, (_, parts) in enumerate(ADDITIONS)
        if any(part in f".{name}" for part in parts)
    ]
    return (ADDITIONS[min(kinds)][0], len(kinds)) if kinds else (None, 0)


def _piece(shapes: Shapes, found: Found) -> Other | None:
    """What a file is that holds less than a network and nothing that is added to one."""
    if any(mark in name for name in shapes for mark in SDXL):
        return Other("a part of a Stable Diffusion XL checkpoint", PART)
    if any(mark in found for mark, _ in UNETS):
        return None
    if any(mark in found for mark in TAESD_MARKS):
        return A_TAESD
    if "decoder.conv_in.weight" in found or "encoder.conv_in.weight" in found:
        return _vae(found)
    if part := _first(PARTS, found):
        return part
    if "token_embedding.weight" in found:
        return Other("a text encoder", PART)
    if 0 < len(shapes) <= 8 and all(len(shape) == 2 for shape in shapes.values()):
        return Other("a textual-inversion embedding", WORD)
    return None


def _marks(shapes: Shapes) -> Found:
    """Which known tensors there are, with whatever prefix."""
    found: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        if name.startswith("control_model."):  # half a UNet, of a ControlNet
            continue
        parts = name.rsplit(".", MOST_PARTS)
        for number in range(len(parts)):
            end = ".".join(parts[number:])
            if end in KNOWN:
                found.setdefault(end, {})[name.removesuffix(end)] = shape
    return found


def _first(networks: tuple[Network, ...], found: Found) -> Other | None:
    """The first of *networks* all of whose marks stand behind one prefix."""
    return next((network.other for network in networks if any(_prefixes(network, found))), None)


def _prefixes(network: Network, found: Found) -> Iterator[bool]:
    if not all(mark in found for mark in network.elsewhere):
        return
    for prefix in found.get(next(iter(network.marks)), {}):
        yield all(
            prefix in found.get(mark, {}) and _has_shape(found[mark][prefix], pattern)
            for mark, pattern in network.marks.items()
        ) and not any(prefix in found.get(mark, {}) for mark in network.absent)


def _has_shape(shape: Shape, pattern: Pattern) -> bool:
    sizes = zip(shape, pattern, strict=False)
    return len(shape) >= len(pattern) and all(wanted in (None, size) for size, wanted in sizes)


def _quantised(shapes: Shapes) -> Other | None:
    """What a file is whose matrices are packed in 4 or 8 bits. A stray tensor of such a file does not count."""
    for name in shapes:
        stem, dot, end = name.rpartition(".")
        if end.startswith("bitsandbytes"):
            stem, dot, end = stem.rpartition(".")  # of `weight.quant_state.bitsandbytes__nf4`
        packed = shapes.get(stem, ())
        if end in ("absmax", "quant_state") and len(packed) == 2 and packed[1] == 1:
            return Other("a checkpoint in bitsandbytes' 4 or 8 bits", QUANTISED)
        if end == "qweight" and f"{stem}{dot}weight" not in shapes:
            return Other("a checkpoint whose weights are quantised to integers", QUANTISED)
        if end == "comfy_quant" and f"{stem}{dot}weight" in shapes:
            return Other("a checkpoint whose weights ComfyUI quantised", QUANTISED)
    return None


def _unet(shapes: Shapes, found: Found, prefix: str) -> Other | None:
    """What a whole UNet is, by what else stands behind its *prefix*; None if it may be of Stable Diffusion."""
    for mark, other in UNET_KINDS.items():
        if prefix in found.get(mark, {}):
            return other
    for mark in CONDITIONED:
        if prefix in found.get(mark, {}):
            shape = found[mark][prefix]
            if len(shape) > 1 and shape[1] in CONDITIONS:
                return CONDITIONS[shape[1]]
    return next((other for mark, other in SPACES.items() if mark in shapes), None)


def _vae(found: Found) -> Other:
    """Which autoencoder a file holds, by what its decoder takes."""
    (shape, *_) = found.get("decoder.conv_in.weight", {"": ()}).values()
    if len(shape) == 5:
        return FILM_VAE
    return WIDE_VAES.get(shape[1], A_VAE) if len(shape) == 4 else A_VAE
