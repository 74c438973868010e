"""Tokens of a transformer that are patches of a latent, as graphs have them: without tensors of six axes."""

from __future__ import annotations

import torch


def picture_of(tokens: torch.Tensor, patch: int, height: int, width: int) -> torch.Tensor:
    """(B, N, patch × patch × C) -> (B, C, height, width), in two transpositions of four axes at most, not in one of six."""
    rows, columns, batch = height // patch, width // patch, tokens.shape[0]
    channels = tokens.shape[2] // patch**2
    lines = tokens.reshape(batch * rows, columns, patch, patch * channels).transpose(1, 2)
    return lines.reshape(batch, height, width, channels).permute(0, 3, 1, 2)


def convolution_of(weight: torch.Tensor, *, patch: int, channels_last: bool) -> torch.Tensor:
    """A linear layer's weight on patches, (D, patch² × C), as that of a convolution that embeds them: (D, C, patch, patch).

    Args:
        channels_last: whether a patch is pixel after pixel, each with its channels; else channel after channel.
    """
    if channels_last:
        return weight.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2).contiguous()
    return weight.unflatten(1, (-1, patch, patch))


def embed(latent: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """(B, C, height, width) -> (B, N, D), by a convolution whose steps are as long as its kernel."""
    made = torch.nn.functional.conv2d(latent, weight, bias, stride=weight.shape[2:])
    return made.flatten(2).transpose(1, 2)
