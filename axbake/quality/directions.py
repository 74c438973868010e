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
