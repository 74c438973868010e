"""Train the second demo model: a rectified flow of Stable Diffusion 3's structure, small enough for one CPU core in 100 minutes.

Pictures, captions and the beginning of the VAE are those of the first demo model (`resources/demo`).

    python -m resources.demo_flow.train --font NotoColorEmoji.ttf --out DIR
"""

import argparse
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel
from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn.functional import avg_pool2d, scaled_dot_product_attention
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from resources.demo.train import SIZE, anneal, emoji
from resources.demo_flow import to_single_file

ROOT = Path(__file__).parents[1]
SCALE, SHIFT = 1.5305, 0.0609  # of SD 3's latents: mean 0 and variance 1 after (latent - SHIFT) * SCALE
TOKENS = 77  # of a prompt
VOCABULARY, END = 49408, 49407  # CLIP's
TABLE = "text_model.embeddings.token_embedding.weight"
CHANNELS = 4096  # of a token, of which the text encoders give the first 96
OLD_SCALE = 0.18215  # of the first demo's latents
LEVELS_SHIFT = 3.0  # of the noise levels when pictures are drawn
SHOWN = (
    "panda face", "slice of pizza", "rocket", "penguin", "smiling face with sunglasses", "tractor", "sunflower", "rainbow",
    "a christmas tree", "jack-o-lantern emoji", "robot face", "tiger face", "hamburger", "fish", "frog face", "crown",
)  # fmt: skip


def chosen(captions):
    """Numbers of the emoji that the flow is trained on: every third one, and those that SHOWN and the demos' prompts name."""
    prompts = (ROOT.parent / "config" / "prompts" / "emoji.txt").read_text(encoding="utf-8").splitlines()
    named = {prompt.removeprefix("a ").removesuffix(" emoji") for prompt in (*SHOWN, *prompts)}
    return [number for number, caption in enumerate(captions) if number % 3 == 0 or caption in named]


class PaddedAttention:
    """Attention of SD 3 where the last token of the text stands for *copies* of it: padding, all of which look alike."""

    def __init__(self) -> None:
        self.copies = 1

    def __call__(self, attn, hidden_states, encoder_hidden_states, attention_mask=None):
        split = lambda x: x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
        sides = [
            (attn.to_q, attn.to_k, attn.to_v, hidden_states),
            (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj, encoder_hidden_states),
        ]
        query, key, value = (torch.cat([split(side[n](side[3])) for side in sides], 2) for n in range(3))
        mask = torch.zeros(1, 1, 1, key.shape[2], dtype=query.dtype)
        mask[..., -1] = math.log(self.copies)
        joined = scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2)
        picture, text = joined.split([hidden_states.shape[1], encoder_hidden_states.shape[1]], 1)
        return attn.to_out[0](picture), text if attn.context_pre_only else attn.to_add_out(text)


def new_vae():
    """A VAE like SD 3's, narrower, that begins as the first demo's: its four channels are the first of sixteen."""
    vae = AutoencoderKL(
        block_out_channels=(32, 64, 64, 64),
        layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=16,
        sample_size=SIZE,
        norm_num_groups=32,
        scaling_factor=SCALE,
        shift_factor=SHIFT,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    old = {
        n: t.float()
        for n, t in convert_ldm_vae_checkpoint(load_file(ROOT / "demo" / "emoji-sd.safetensors"), vae.config).items()
    }
    own = vae.state_dict()
    own |= {n: t for n, t in old.items() if n in own and t.shape == own[n].shape}
    # Its 1x1 convolutions around the latent become parts of their neighbours.
    inward, outward = old["quant_conv.weight"][..., 0, 0], old["post_quant_conv.weight"][..., 0, 0]
    weight = torch.einsum("ab,bcij->acij", inward, old["encoder.conv_out.weight"])
    bias = inward @ old["encoder.conv_out.bias"] + old["quant_conv.bias"]
    own["encoder.conv_out.weight"][:4], own["encoder.conv_out.bias"][:4] = OLD_SCALE * weight[:4], OLD_SCALE * bias[:4]
    own["encoder.conv_out.weight"][16:20], own["encoder.conv_out.bias"][16:20] = (
        weight[4:],
        bias[4:] + 2 * math.log(OLD_SCALE),
    )
    own["encoder.conv_out.bias"][20:] = -4
    own["decoder.conv_in.weight"][:, :4] = (
        torch.einsum("abij,bc->acij", old["decoder.conv_in.weight"], outward) / OLD_SCALE
    )
    own["decoder.conv_in.bias"] = (
        old["decoder.conv_in.bias"] + old["decoder.conv_in.weight"].sum((2, 3)) @ old["post_quant_conv.bias"]
    )
    vae.load_state_dict(own)
    return vae


def train_vae(pictures, vae, minutes, top=1e-3, batch=8):
    """L1 on pixels, on their differences and on the means of 8x8 pixels, and a little KL."""
    optimiser = torch.optim.AdamW(vae.parameters(), top, betas=(0.9, 0.99), weight_decay=0)
    start, step = time.time(), 0
    while (done := (time.time() - start) / 60 / minutes) < 1:
        anneal(optimiser, top, done, step, 50)
        x = pictures[torch.randint(0, len(pictures), (batch,))]
        flip = torch.rand(batch) < 0.5
        x[flip] = x[flip].flip(-1)
        with torch.autocast("cpu", torch.bfloat16):
            latent = vae.encode(x).latent_dist
            y = vae.decode(latent.sample()).sample
        loss, l1 = loss_of(y, x)
        loss = loss + 1e-4 * latent.kl().float().mean() / 256
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        step += 1
        if step % 50 == 1:
            print(f"vae {step} {done:.2f} L1 {l1:.4f} kl {latent.kl().mean() / 1024:.3f}", flush=True)


def loss_of(found, wanted):
    """L1 of pixels, of their differences and of the means of 8x8 pixels, and the first of them."""
    d = found.float() - wanted
    edges = (d[..., 1:] - d[..., :-1]).abs().mean() + (d[..., 1:, :] - d[..., :-1, :]).abs().mean()
    return d.abs().mean() + 0.5 * edges + avg_pool2d(d, 8).abs().mean(), d.abs().mean()


def train_decoder(pictures, vae, minutes, top=1e-3, batch=8):
    """The decoder alone, for the latents that the transformer was trained on."""
    mean, std = latents_of(vae, pictures)
    weights = list(vae.decoder.parameters())
    optimiser = torch.optim.AdamW(weights, top, betas=(0.9, 0.99), weight_decay=0)
    start, step = time.time(), 0
    while (done := (time.time() - start) / 60 / minutes) < 1:
        anneal(optimiser, top, done, step, 20)
        which = torch.randint(0, len(pictures), (batch,))
        with torch.autocast("cpu", torch.bfloat16):
            found = vae.decode(mean[which] + std[which] * torch.randn_like(mean[which])).sample
        loss, l1 = loss_of(found, pictures[which])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        step += 1
        if step % 50 == 1:
            print(f"decoder {step} {done:.2f} L1 {l1:.4f}", flush=True)


@torch.no_grad()
def latents_of(vae, pictures):
    """Mean and standard deviation of each picture's latent; (N, 16, 8, 8)."""
    found = [vae.encode(p).latent_dist for p in pictures.split(32)]
    return torch.cat([d.mean for d in found]), torch.cat([d.std for d in found])


@torch.no_grad()
def rescale_latents(vae, pictures):
    """Give each channel the variance that SCALE is for, by the convolutions around the latent."""
    mean, std = latents_of(vae, pictures)
    variance = mean.var((0, 2, 3)) + (std**2).mean((0, 2, 3))
    factor = 1 / (SCALE * variance.sqrt())
    out, channels = vae.encoder.conv_out, len(factor)
    out.weight[:channels] *= factor.view(-1, 1, 1, 1)
    out.bias[:channels] *= factor
    out.bias[channels:] += 2 * factor.log()
    vae.decoder.conv_in.weight /= factor.view(1, -1, 1, 1)


def new_clips(vocabulary, end):
    """Two narrow CLIP text encoders with their projections.

    Args:
        vocabulary, end: number of tokens that they know, and which of them ends a text.
    """
    sizes = {"clip_l": (32, 2, "quick_gelu"), "clip_g": (64, 3, "gelu")}
    return {
        name: CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
                num_attention_heads=1, max_position_embeddings=TOKENS, projection_dim=width, hidden_act=activation,
                bos_token_id=0, eos_token_id=end, pad_token_id=0,
            )
        )
        for name, (width, layers, activation) in sizes.items()
    }  # fmt: skip


@torch.no_grad()
def with_all_tokens(clips, seen):
    """The text encoders with CLIP's whole vocabulary; tokens that are not among the *seen* ones keep random embeddings."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = new_clips(VOCABULARY, END)
    for name, whole in made.items():
        own = clips[name].state_dict()
        table = whole.state_dict()[TABLE].clone()
        table[seen] = own[TABLE]
        whole.load_state_dict(own | {TABLE: table})
    return made


def new_transformer(channels):
    """SD 3's transformer, 192 wide and 6 blocks deep; its modulation begins with zeros, as Peebles and Xie (2023) have it."""
    transformer = SD3Transformer2DModel(
        sample_size=8, num_layers=6, attention_head_dim=64, num_attention_heads=3, joint_attention_dim=channels,
        caption_projection_dim=192, pooled_projection_dim=96, pos_embed_max_size=16,
    )  # fmt: skip
    zero = [transformer.norm_out.linear, transformer.proj_out]
    zero += [norm.linear for block in transformer.transformer_blocks for norm in (block.norm1, block.norm1_context)]
    for layer in zero:
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    return transformer


@torch.no_grad()
def with_all_channels(transformer):
    """The transformer that takes CHANNELS channels of a token; the weights of those that are always zero are zero."""
    whole = new_transformer(CHANNELS)
    own = transformer.state_dict()
    name = "context_embedder.weight"
    own[name] = torch.nn.functional.pad(own[name], (0, CHANNELS - own[name].shape[1]))
    whole.load_state_dict(own)
    return whole.eval()


def encode(clips, ids):
    """Tokens and pooled prompts of both text encoders, side by side; (N, T, 96) and (N, 96)."""
    made = [clip(row, output_hidden_states=True) for clip, row in zip(clips.values(), ids, strict=True)]
    return torch.cat([m.hidden_states[-2] for m in made], -1), torch.cat([m.text_embeds for m in made], -1)


def token_ids(tokenizer, texts, pads=(END, 0)):
    """Token ids of *texts* for both text encoders, filled up with the padding of each; two of (N, 77)."""
    rows = tokenizer(texts)["input_ids"]
    return [torch.tensor([row + [pad] * (TOKENS - len(row)) for row in rows]) for pad in pads]


@torch.no_grad()
def draw(transformer, vae, clips, tokenizer, prompts=SHOWN, steps=20, guidance=5.0, seed=7):
    """Pictures of *prompts*, side by side."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=LEVELS_SHIFT)
    scheduler.set_timesteps(steps)
    context, pooled = encode(clips, token_ids(tokenizer, [*prompts, *[""] * len(prompts)]))
    context = torch.nn.functional.pad(context, (0, CHANNELS - context.shape[-1]))
    x = torch.randn(len(prompts), 16, 8, 8, generator=torch.Generator().manual_seed(seed))
    for t in scheduler.timesteps:
        with torch.autocast("cpu", torch.bfloat16):
            guess = transformer(torch.cat([x, x]), context, pooled, t.expand(2 * len(x)), return_dict=False)[0]
        wanted, empty = guess.float().chunk(2)
        x = scheduler.step(empty + guidance * (wanted - empty), t, x).prev_sample
    pictures = (vae.decode(x / SCALE + SHIFT).sample.clamp(-1, 1) * 127.5 + 127.5).byte().permute(0, 2, 3, 1)
    rows = [torch.cat(list(row), 1) for row in pictures.split(8)]
    return Image.fromarray(torch.cat(rows).numpy())


def train_flow(pictures, captions, vae, tokenizer, minutes, out, top=1e-3, batch=32):
    """Noise less picture is predicted at levels sigmoid(normal) (Esser et al. 2024); 10 % of captions empty; weights averaged.

    For the first of *minutes* prompts end behind the longest of a batch, and their last token counts for all padding behind it;
    then they have all 77 tokens.
    """
    mean, std = latents_of(vae, pictures)
    texts = [wording for c in captions for wording in (c, f"{c} emoji", f"a {c}")]
    ids, empty = token_ids(tokenizer, texts), token_ids(tokenizer, [""])
    lengths = (ids[0] != END).sum(1) + 1
    seen, places = torch.stack([*ids, *(row.expand_as(ids[0]) for row in empty)]).unique(return_inverse=True)
    ids, empty = places[:2], places[2:, :1]
    clips = new_clips(len(seen), seen.tolist().index(END))
    transformer, padded = new_transformer(96), PaddedAttention()
    for block in transformer.transformer_blocks:
        block.attn.set_processor(padded)
    weights = [w for part in (transformer, *clips.values()) for w in part.parameters()]
    optimiser = torch.optim.AdamW(weights, top, betas=(0.9, 0.99), weight_decay=1e-3)
    average = [w.detach().clone() for w in weights]
    start, step, saved, losses = time.time(), 0, time.time(), []

    @torch.no_grad()
    def averaged():
        """Transformer and text encoders with the averaged weights."""
        trained = [w.clone() for w in weights]
        torch._foreach_copy_(weights, average)
        made = with_all_channels(transformer), with_all_tokens(clips, seen)
        torch._foreach_copy_(weights, trained)
        return made

    while (done := (time.time() - start) / 60 / sum(minutes)) < 1:
        anneal(optimiser, top, done, step, 300)
        which, wording = torch.randint(0, len(captions), (batch,)), torch.randint(0, 3, (batch,))
        tokens = 1 + int(lengths[3 * which + wording].max()) if done * sum(minutes) < minutes[0] else TOKENS
        padded.copies = TOKENS - tokens + 1
        dropped = torch.rand(batch, 1) < 0.1
        rows = [
            torch.where(dropped, none, full[3 * which + wording])[:, :tokens]
            for none, full in zip(empty, ids, strict=True)
        ]
        latent = (mean[which] + std[which] * torch.randn(batch, 16, 8, 8) - SHIFT) * SCALE
        level, noise = torch.sigmoid(0.5 + 1.4 * torch.randn(batch)), torch.randn_like(latent)
        s = level.view(-1, 1, 1, 1)
        with torch.autocast("cpu", torch.bfloat16):
            context, pooled = encode(clips, rows)
            guess = transformer((1 - s) * latent + s * noise, context, pooled, 1000 * level, return_dict=False)[0]
        loss = ((guess.float() - (noise - latent)) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        losses.append(loss.item())
        step += 1
        keep = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_mul_(average, keep)
            torch._foreach_add_(average, [w.detach() for w in weights], alpha=1 - keep)
        if step % 100 == 0:
            print(
                f"flow {step} {done:.3f} tokens {tokens} loss {sum(losses[-100:]) / 100:.4f} {time.time() - start:.0f} s",
                flush=True,
            )
        if time.time() - saved > 600:
            save(out, step, *averaged(), vae, tokenizer)
            saved = time.time()
    return averaged()


def save(out, name, transformer, clips, vae, tokenizer):
    """Write the model as one file, and what it draws."""
    tensors = to_single_file.tensors(transformer, vae, clips)
    stored = {name: t.to(torch.float16).contiguous() for name, t in sorted(tensors.items())}
    save_file(stored, out / "emoji-sd3.safetensors", metadata={"format": "pt"})
    draw(transformer, vae, clips, tokenizer).save(out / f"samples-{name}.png")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--font", type=Path, required=True)
    arguments.add_argument("--out", type=Path, required=True)
    arguments.add_argument(
        "--minutes", type=float, nargs=4, default=(18, 38, 8, 33), metavar=("VAE", "FEW", "ALL", "DECODER")
    )
    a = arguments.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    a.out.mkdir(parents=True, exist_ok=True)
    pictures, captions = emoji(str(a.font))
    vae = new_vae()
    train_vae(pictures, vae, a.minutes[0])
    rescale_latents(vae, pictures)
    numbers = chosen(captions)
    pictures, captions = pictures[numbers], [captions[number] for number in numbers]
    tokenizer = CLIPTokenizer(
        str(ROOT / "clip" / "vocab.json"), str(ROOT / "clip" / "merges.txt"), model_max_length=TOKENS
    )
    transformer, clips = train_flow(pictures, captions, vae, tokenizer, a.minutes[1:3], a.out)
    save(a.out, "flow", transformer, clips, vae, tokenizer)
    train_decoder(pictures, vae, a.minutes[3])
    save(a.out, "final", transformer, clips, vae, tokenizer)


if __name__ == "__main__":
    main()
