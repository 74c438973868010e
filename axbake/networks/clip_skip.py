"""Clip skip: how many layers of a CLIP text encoder stay."""

from axbake.errors import AxbakeError


class ClipSkipError(AxbakeError):
    """A text encoder cannot be shortened, or has too few layers for this clip skip."""


def layers_left(layers: int, clip_skip: int, *, title: str, shortened: bool) -> int:
    """Of *layers*, those that stay.

    Args:
        clip_skip: 1 leaves all, each more takes away the last one.
        title: of the family, for messages.
        shortened: whether web UIs' clip skip shortens the family's text encoders.

    Raises:
        ClipSkipError
    """
    if clip_skip > 1 and not shortened:
        raise ClipSkipError(
            f"clip_skip: {clip_skip}, wanted 1: the text encoder of {title} always ends before its last layer, and "
            "AUTOMATIC1111's web UI draws the same with any clip skip. Set 1 in the table."
        )
    left = layers - (clip_skip - 1)
    if left < 1:
        raise ClipSkipError(
            f"clip_skip: {clip_skip} leaves out {clip_skip - 1} layers of {layers}; at least one must stay. Set a lower"
            " number in the table."
        )
    return left
