"""How long a compile takes, what memory and disk it needs, and what its model takes on a card: estimates, each with its basis.

Published figures are scaled by what they depend on: time by multiplications a run, the card's memory by weights and picture size.
Nothing is known of what memory the real Pulsar2 takes; what the emulator takes, which holds all weights twice, stands for it.
"""

import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from axbake.networks.component import DECODER, DENOISER, ENCODER, TEXT
from axbake.preflight.findings import Finding
from axbake.preflight.graph import Graph, volume

CARD_MIB = 7040  # CMM of an 8 GB LLM-8850: `axcl-smi` in M5Stack's documentation
#: CMM of cards in MiB; of the larger, as a public guide to Z-Image-Turbo on an AX8850 prints it
CARDS = {"an 8 GB card": CARD_MIB, "a 16 GB card": 15232}
SLOTS = 2  # graphs in turn, where a card does not hold all (`axbake.runtime.card_chain`)
PCIE_MB = 500  # a second, at most: a Raspberry Pi 5 has one lane of PCIe 2.0
MIB_OF_MB = 1e6 / 2**20
TILES = 64  # pixels: sides of tiles are multiples of it (column `vae_tile`)
MUCH = 0.9  # of a card's memory, above which an estimate is a warning: the program that draws needs some too


@dataclass(frozen=True)
class Compile:
    """A compile whose time is known."""

    seconds: float
    macs: float  # of one run of its graph
    told: str


@dataclass(frozen=True)
class OnCard:
    """A compiled model whose memory on a card is known; Stable Diffusion 1.5 at 512 × 512."""

    file_mb: float
    cmm_mb: float
    quantised_bytes: float  # of its graph's weights, by `Graph.quantised_bytes`
    first_input: int  # elements


# By role, since no other family's are known. docs/numbers.md, «A bake at full size»: 2 cores, 480 × 320, the UNet with 32 samples
EMULATED = {
    TEXT: Compile(5, 6.6e9, "5 s emulated"),
    DENOISER: Compile(234, 221.9e9, "234 s emulated, 32 samples"),
    ENCODER: Compile(62, 323.0e9, "62 s emulated"),
    DECODER: Compile(126, 732.5e9, "126 s emulated"),
}
# yuyun2000/sd15-to-ax8850-deploy tells 68 minutes of the UNet at 480 × 320; the `build_context.json` of Mojo24x7's VAE encoder at
# 512 × 512 tells 3260 s. For the other two no time is published: each is scaled from the network nearest to it.
UNET_PUBLISHED = Compile(68 * 60, 221.9e9, "68 min published of SD 1.5's UNet at 480 × 320")
ENCODER_PUBLISHED = Compile(3260, 558.3e9, "54 min published of SD 1.5's VAE encoder at 512 × 512")
PUBLISHED = {
    TEXT: UNET_PUBLISHED,
    DENOISER: UNET_PUBLISHED,
    ENCODER: ENCODER_PUBLISHED,
    DECODER: ENCODER_PUBLISHED,
}
# MasterVVK/cm3588-ax650n-pcie-tuning, of AXERA-TECH/sd1.5-lcm.axera
ON_CARD = {
    TEXT: OnCard(168, 175, 123.4e6, 77),
    DENOISER: OnCard(894, 981, 858.4e6, 4 * 64 * 64),
    ENCODER: OnCard(44, 247, 34.2e6, 3 * 512 * 512),
    DECODER: OnCard(65, 466, 49.5e6, 4 * 64 * 64),
}


@dataclass(frozen=True)
class Estimate:
    """What a component's compile takes, and its model on a card."""

    seconds: float
    time_basis: str
    memory_bytes: int
    disk_bytes: int  # free, for a build to run through
    cmm_mb: float


def estimate(role: str, graph: Graph, toolchain: str) -> Estimate:
    """Estimate for *graph* of a component of *role* compiled by *toolchain*."""
    known = (EMULATED if toolchain == "emulator" else PUBLISHED)[role]
    return Estimate(
        seconds=known.seconds * graph.macs / known.macs,
        time_basis=known.told,
        # Fitted to the peaks of four emulated compiles: 7.5, 2.0, 1.2 and 1.0 GiB (docs/numbers.md).
        memory_bytes=int(0.4 * 2**30) + 2 * graph.float_bytes + 8 * graph.largest_tensor,
        # The graph's copy, the optimised one in float, the quantised one, and the model.
        disk_bytes=2 * graph.float_bytes + 2 * graph.quantised_bytes,
        cmm_mb=_cmm_mb(role, graph),
    )


def _cmm_mb(role: str, graph: Graph, share: float = 1) -> float:
    """What a graph takes of a card's memory, in MB, with *share* of the size of its input."""
    card = ON_CARD[role]
    first = volume(graph.shapes[next(iter(graph.inputs))]) if graph.inputs else 0
    weights = card.file_mb * graph.quantised_bytes / card.quantised_bytes
    return weights + (card.cmm_mb - card.file_mb) * share * first / card.first_input


def tile_estimates(graph: Graph) -> dict[int, float]:
    """Side in pixels of each tile that the VAE decoder of *graph* could draw instead -> what it would take of a card, in MB."""
    sides = graph.shapes.get(graph.model.graph.output[0].name, ())[2:]
    fixed = [side for side in sides if isinstance(side, int)]
    smaller = range(TILES, min(fixed, default=0) + 1, TILES)
    return {side: _cmm_mb(DECODER, graph, side**2 / math.prod(fixed)) for side in smaller}


def estimate_findings(component: str, graph: Graph, toolchain: str, found: Estimate) -> Iterator[Finding]:
    """What to expect of a compile."""
    minutes = f"{found.seconds / 60:.0f} min" if found.seconds >= 90 else f"{found.seconds:.0f} s"
    whose = "" if toolchain == "emulator" else " by the emulator's need; Pulsar2's is not published"
    yield Finding(
        component,
        "estimate",
        "note",
        f"about {minutes} ({found.time_basis}, scaled by {graph.macs / 1e9:.1f} G multiplications per run); memory "
        f"about {found.memory_bytes / 2**30:.1f} GiB{whose}",
    )


def host_memory() -> int:
    """Bytes of memory of this machine; what a cluster grants a job of it is not looked at."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_host(component: str, graph: Graph, found: Estimate, *, memory: int, free: int) -> Iterator[Finding]:
    """Whether a compile finds what it needs.

    Args:
        memory: bytes that the host has.
        free: bytes that are free on the disk.
    """
    if memory < found.memory_bytes:
        yield Finding(
            component,
            "host",
            "warning",
            f"about {found.memory_bytes / 2**30:.1f} GiB of memory are needed; this host has {memory / 2**30:.1f}. The "
            "kernel may kill the compile. Use another host, or swap.",
        )
    if free < graph.quantised_bytes:
        yield Finding(
            component,
            "host",
            "error",
            f"{free / 1e9:.2f} GB of disk space are free, but the model alone takes {graph.quantised_bytes / 1e9:.2f}. "
            "Free some space.",
        )
    elif free < found.disk_bytes:
        yield Finding(
            component,
            "host",
            "warning",
            f"{free / 1e9:.2f} GB of disk space are free; a build temporarily writes about "
            f"{found.disk_bytes / 1e9:.2f} in between. Free some space.",
        )


def free_disk(place: Path) -> int:
    """Bytes free on the file system of *place*."""
    return shutil.disk_usage(place).free


def check_card(
    found: Mapping[str, Estimate], tiles: Mapping[str, Mapping[int, float]] = MappingProxyType({})
) -> Iterator[Finding]:
    """Whether all models fit into a card at once, and if not, with what tiles of the VAE decoder they would.

    Args:
        tiles: by decoder, what `tile_estimates` says of its graph.
    """
    need = sum(estimate.cmm_mb for estimate in found.values()) * MIB_OF_MB
    parts = ", ".join(f"{name} {estimate.cmm_mb:.0f} MB" for name, estimate in found.items())
    level = "warning" if need > MUCH * CARD_MIB else "note"
    advice = ""
    if level == "warning":
        fitting = [
            f"set `vae_tile` to {side}: {name} then takes about {of_tile:.0f} MB, and all models {with_tiles:.0f} MiB"
            for name, by_side in tiles.items()
            for side, of_tile in sorted(by_side.items(), reverse=True)
            if (with_tiles := need + (of_tile - found[name].cmm_mb) * MIB_OF_MB) <= MUCH * CARD_MIB
        ]
        advice = f" {'; or '.join(['Load them one after the other, or use a smaller size', *fitting[:1]])}."
        advice += "".join(f" {sentence}" for sentence in _streaming(found))
    yield Finding(
        "model",
        "card",
        level,
        f"about {need:.0f} of {CARD_MIB} MiB of CMM ({parts}; scaled from SD 1.5's at 512 × 512:"
        f" {', '.join(f'{card.cmm_mb:.0f}' for card in ON_CARD.values())} MB).{advice}",
    )


def _streaming(found: Mapping[str, Estimate]) -> Iterator[str]:
    """Of each component that an 8 GB card does not hold, what it and a larger card do: a sentence each."""
    parts: dict[str, list[float]] = {}
    for name, one in found.items():
        parts.setdefault(name.partition("/")[0], []).append(one.cmm_mb)
    for component, graphs in parts.items():
        if sum(graphs) * MIB_OF_MB > CARD_MIB:
            done = "; ".join(f"on {card} {_on_card(graphs, mib)}" for card, mib in CARDS.items())
            yield f"The {component} alone takes about {sum(graphs) * MIB_OF_MB:.0f} MiB: {done}."


def _on_card(graphs: Sequence[float], card_mib: int) -> str:
    """What becomes of *graphs*, in MB, on a card: those that stay, and those that are loaded in turn."""
    most = card_mib / MIB_OF_MB
    if sum(graphs) <= most:
        return "all stay loaded"
    stay = [count for count in range(len(graphs)) if sum(graphs[:count]) + SLOTS * max(graphs[count:]) <= most]
    if not stay:
        return "its largest graph does not fit twice, as it must: set a lower graph_weights"
    turn = sum(graphs[stay[-1] :])
    return (
        f"{stay[-1]} of its {len(graphs)} graphs stay, and the others, {turn / 1000:.1f} GB, are loaded anew at every step, in"
        f" {turn / PCIE_MB:.0f} s or more on a Raspberry Pi 5"
    )
