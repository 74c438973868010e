"""In which directions errors of a denoiser count: by what they do to the last latent of a drawing.

What a step's error does to the last latent depends on the scheduler's coefficients, on guidance, and on how the later steps
answer to a changed latent. All are linear for small errors, and known: so random directions of the last latent are taken
backwards through the drawing, step by step, through sampler and network. What arrives at a step's output is the direction in
which its errors count.
"""

from collections.abc import Callable, Mapping

import numpy as np

from axbake.quality.passes import Passes
from axbake.runtime.sampler import Schedule


def guidance_weights(branches: int, scale: float, image_scale: float | None) -> list[float]:
    """By what guidance multiplies the output of each of a step's branches, in the sampler's order."""
    if branches == 1:
        return [1.0]
    if branches == 2 or image_scale is None:
        return [scale, 1.0 - scale]
    return [scale, image_scale - scale, 1.0 - image_scale]


def important_steps(power: Mapping[int, float], count: int) -> dict[int, float]:
    """At most *count* steps of a drawing, by which to tell the whole -> how many steps each stands for.

    A step whose share is large is taken for itself; of the others each stands for an equal share, so that the more a step
    matters, the likelier it is one of them, and the less it is multiplied by (a systematic sample with probabilities proportional
    to size; Cochran, Sampling Techniques, 3rd edition, 9A.9).

    Args:
        power: by step, what an error in it does to the last latent.
    """
    rest = {step: max(value, 1e-300) for step, value in sorted(power.items())}
    found: dict[int, float] = {}
    while len(found) < count and rest:
        share = sum(rest.values()) / (count - len(found))
        large = [step for step, value in rest.items() if value >= share]
        if not large:
            ends = np.cumsum(list(rest.values()))
            places = np.searchsorted(ends, share * (np.arange(count - len(found)) + 0.5))
            steps = list(rest)
            return dict(sorted((found | {steps[place]: share / rest[steps[place]] for place in places}).items()))
        for step in large[: count - len(found)]:
            found[step] = 1.0
            del rest[step]
    return dict(sorted(found.items()))


def drawing_directions(
    passes: Passes,
    feeds: Mapping[tuple[int, int], Mapping[str, np.ndarray]],
    schedule: Schedule,
    weights: Mapping[tuple[int, int], float],
    *,
    latent: str,
    shape: tuple[int, ...],
    count: int,
    seed: int,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[tuple[int, int], np.ndarray]:
    """(*count*, E) directions of the output of each sample of a drawing, by step and branch.

    Args:
        feeds: all samples of the drawing, by step and branch.
        weights: of the same, as `guidance_weights` gives them.
        latent: name of the input that has the latent, in its first channels.
        shape: of the latent, (1, C, h, w).
    """
    steps = sorted({step for step, _ in feeds}, reverse=True)
    size = len(schedule.timesteps)
    random = np.random.default_rng(seed)
    by_latent = np.zeros((size, count, *shape[1:]))  # derivatives by the latent after each step
    by_latent[-1] = random.standard_normal((count, *shape[1:]))
    found: dict[tuple[int, int], np.ndarray] = {}
    for step in steps:
        made = np.einsum("i,ikchw->kchw", schedule.coefficients[step:, 1 + step], by_latent[step:])
        for branch in sorted(branch for one, branch in feeds if one == step):
            found[step, branch] = (weights[step, branch] * made).reshape(count, -1).astype(np.float32)
            if step:
                gradients = passes.pull_back(feeds[step, branch], found[step, branch])
                taken = np.stack([one[latent].numpy()[0, : shape[1]] for one in gradients])
                by_latent[step - 1] += schedule.input_scale[step] * taken
            tell(len(found), len(feeds))
    return found
