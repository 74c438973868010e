"""What a model's denoiser saw, as samples: inputs of its graphs, each of one prompt, one step and one branch.

Besides the branches of guidance there is the empty prompt, the negative prompt of everyone who gives none. Where the row has
a negative prompt of its own, the empty one is put to the latents that are recorded anyway, at each step to one prompt's: nothing
has to be drawn for it, and that is how it is used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from axbake.runtime.sampler import MASK, Schedule, Time, load_schedule

SAMPLE, TEXT = "sample", "encoder_hidden_states"  # names that every program has
PROMPT, NEGATIVE, EMPTY, PLAIN = range(4)
BRANCHES = ("prompt", "negative prompt", "empty prompt", "negative prompt without the picture")
GUIDANCE = (
    PROMPT,
    NEGATIVE,
    PLAIN,
)  # the branches of it, in the sampler's order; only a denoiser for instructions has the last
TEXTS = (PROMPT, NEGATIVE, EMPTY, NEGATIVE)  # by branch: whose text it has
BESIDE = (0, 1, 1, 2)  # by branch: which of what a denoiser takes beside the latents

Which = tuple[int, int, int]  # prompt, step, branch


@dataclass(frozen=True)
class TakenInputs:
    """What a denoiser's graphs take: `sample`, `encoder_hidden_states`, and one more, the time in one of its forms."""

    time: str  # name of that input
    shape: tuple[int, ...]  # (1,): the timestep; else the row

    @classmethod
    def of(cls, shapes: Mapping[str, tuple[int, ...]]) -> TakenInputs:
        """Of a denoiser whose inputs have these *shapes*, by name."""
        ((time, shape),) = ((name, shape) for name, shape in shapes.items() if name not in (SAMPLE, TEXT, MASK))
        return cls(time, tuple(shape))

    def feed(
        self, latent: np.ndarray, text: np.ndarray, time: Time, mask: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """What the graphs are given: the scaled *latent*, an embedded prompt, and the time in the form that they take.

        And which of the prompt's tokens count, if they take a mask.
        """
        feed = {SAMPLE: latent, TEXT: text, self.time: time.value(self.shape)}
        return feed if mask is None else feed | {MASK: mask}


@dataclass(frozen=True)
class DenoiserSamples:
    """What was recorded of P prompts (`trajectories`), and the schedule of N steps that it was recorded with."""

    prompts: tuple[str, ...]
    tokens: np.ndarray  # (P,) int64: of each prompt
    texts: tuple[np.ndarray, ...]  # of prompt, negative and empty prompt: (P or 1, 1, T, W) float32
    latents: np.ndarray  # (P, N + 1, 1, 4, h, w) float32
    added: tuple[
        np.ndarray, ...
    ]  # of the same: (P or 1, 1, C) float32, what is added to the time embedding; empty: nothing
    negative_prompt: str
    schedule: Schedule
    inputs_taken: TakenInputs
    #: (P, B, K, h, w) float32: what the denoiser takes beside each prompt's latents; B: 1, or one for each branch of guidance
    beside: np.ndarray | None = None
    masks: tuple[np.ndarray, ...] = ()  # of the same texts: (P or 1, 1, T) float32, which tokens count; empty: not told

    @property
    def steps(self) -> list[int]:
        """The steps that run the model."""
        return [step for step in range(len(self.schedule.timesteps)) if self.schedule.runs_model(step)]

    def recorded(self, guidance_scale: float) -> list[Which]:
        """Every sample there is: by prompt, then step, then branch; those added for the empty prompt last.

        Args:
            guidance_scale: at 1 the first branch alone runs, and gives samples.
        """
        count = 3 if self.beside is not None and self.beside.shape[1] == len(GUIDANCE) else 2
        branches = GUIDANCE[: count if self.schedule.is_guided(guidance_scale) else 1]
        drawn = [
            (prompt, step, branch)
            for prompt in range(len(self.prompts))
            for step in self.steps
            for branch in branches[: self.schedule.branches(step, len(branches))]
        ]
        if any(self.is_empty(which) for which in drawn):
            return drawn
        return [*drawn, *((number % len(self.prompts), step, EMPTY) for number, step in enumerate(self.steps))]

    def is_empty(self, which: Which) -> bool:
        """Whether the sample's text is the empty prompt."""
        return not self.text(which).strip()

    def text(self, which: Which) -> str:
        """The sample's text."""
        prompt, _, branch = which
        return (self.prompts[prompt], self.negative_prompt, "")[TEXTS[branch]]

    def describe(self, which: Which) -> dict[str, str | int]:
        """The sample in words; steps count from 1."""
        prompt, step, branch = which
        return {"drawing": self.prompts[prompt], "step": step + 1, "text": BRANCHES[branch]}

    def longest(self) -> set[int]:
        """Numbers of the prompts that have the most tokens."""
        return set(np.flatnonzero(self.tokens == self.tokens.max()).tolist())

    def inputs(self, which: Which) -> dict[str, np.ndarray]:
        """The sample, by the names of the graphs: float32, and the timestep int32."""
        prompt, step, branch = which
        latent = (self.latents[prompt, step] * self.schedule.input_scale[step]).astype(np.float32)
        if self.beside is not None:
            latent = np.concatenate([latent, beside_of(self.beside[prompt], branch)], axis=1)
        text, number = TEXTS[branch], prompt if branch == PROMPT else 0
        added = self.added[text][number] if self.added else None
        mask = self.masks[text][number] if self.masks else None
        return self.inputs_taken.feed(latent, self.texts[text][number], self.schedule.time(step, added), mask)

    def all_inputs(self, chosen: list[Which]) -> Iterator[dict[str, np.ndarray]]:
        """`inputs` of each of *chosen*."""
        return map(self.inputs, chosen)


def beside_of(beside: np.ndarray, branch: int) -> np.ndarray:
    """(1, K, h, w): of *beside*, (1 or B, K, h, w), what *branch* takes."""
    row = min(BESIDE[branch], len(beside) - 1)
    return beside[row : row + 1]


def load_samples(trajectories: Path, schedule: Path, taken: TakenInputs) -> DenoiserSamples:
    """The samples in `calibration/trajectories.npz` and `schedule.npz`, for graphs that take *taken*."""
    with np.load(trajectories, allow_pickle=False) as arrays:
        return samples_in(arrays, load_schedule(schedule), taken)


def samples_in(arrays: Mapping[str, np.ndarray], schedule: Schedule, taken: TakenInputs) -> DenoiserSamples:
    """The samples in what `axbake.calibration.trajectories.record_trajectories` writes."""

    def of_texts(what: str) -> tuple[np.ndarray, ...]:
        if f"prompt_{what}" not in arrays:
            return ()
        return arrays[f"prompt_{what}"], arrays[f"negative_{what}"][None], arrays[f"empty_{what}"][None]

    return DenoiserSamples(
        prompts=tuple(map(str, arrays["prompts"])),
        tokens=arrays["tokens"],
        texts=of_texts("embeds"),
        latents=arrays["latents"],
        added=of_texts("added"),
        negative_prompt=str(arrays["negative_prompt"]),
        schedule=schedule,
        inputs_taken=taken,
        beside=arrays.get("beside"),
        masks=of_texts("mask"),
    )
