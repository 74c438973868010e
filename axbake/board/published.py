"""Times of Stable Diffusion 1.5 on an AX650N or AX8850 that others have published, as they tell them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Times of one published model, in seconds; None if it is not known."""

    name: str
    size: str  # width × height
    sampler: str
    steps: int
    text_embedding: float | None
    step: float  # with guidance both runs of the UNet
    guided: bool
    decode: float
    total: float | None
    source: str
    note: str = ""


PUBLISHED = (
    Published(
        name="xxmix9realistic v4.0 (M5Stack LLM-8850)",
        size="320 × 480",
        sampler="DPM++ 2M Karras",
        steps=20,
        text_embedding=0.7,
        step=0.4,
        guided=True,
        decode=0.7,
        total=9.5,
        source="https://github.com/yuyun2000/sd15-to-ax8850-deploy",
        note="the parts are rounded, and sum to 9.4 s",
    ),
    Published(
        name="Dreamshaper 7 with LCM-LoRA (AX650N)",
        size="512 × 512",
        sampler="LCM",
        steps=4,
        text_embedding=0.0098,
        step=0.437,
        guided=False,
        decode=0.930,
        total=None,
        source="https://github.com/AXERA-TECH/sd1.5-lcm.axera",
        note="text embedding: the text encoder's run alone; loading, 15.3 s, apart",
    ),
    Published(
        name="Realistic Vision (Radxa AX-M1)",
        size="512 × 512",
        sampler="Euler",
        steps=30,
        text_embedding=0.023,
        step=0.865,
        guided=True,
        decode=0.906,
        total=None,
        source="https://github.com/Mojo24x7/SD1.5_AXM1-AX8850_Euler",
        note="published: 30 steps take 25.96 s",
    ),
)
