"""Random distortions of training images, each image its own (Simard et al. 2003)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def augment(images: Tensor, kind: str, generator: torch.Generator) -> Tensor:
    """Distort a batch (n, channels, h, w) at random: each image its own transformation.

    Parameters
    ----------
    kind : {"none", "shift", "affine", "elastic"}
        "shift" scales by 0.92 … 1.08, moves by up to 6 % of the width and multiplies the brightness by
        0.8 … 1.2; "affine" rotates by up to 12°, shears by up to 0.15, scales by 0.88 … 1.12 and moves by up
        to 7 % of the width; "elastic" adds a smooth random displacement of a few pixels (Simard et
        al. 2003).
    generator : torch.Generator
        On the CPU.
    """
    if kind not in ("none", "shift", "affine", "elastic"):
        raise ValueError(f"augmentation must be none, shift, affine or elastic, got {kind!r}")
    if kind == "none":
        return images
    if kind == "shift":
        scale = 1 + 0.08 * (torch.rand(len(images), generator=generator) * 2 - 1)
        light = 1 + 0.2 * (torch.rand(len(images), 1, 1, 1, generator=generator) * 2 - 1)
        return (move(images, generator, scale=scale) * light.to(images.device)).clamp(0, 1)
    n = len(images)
    uniform = torch.rand(n, 5, generator=generator) * 2 - 1  # (n, 5) in [-1, 1]
    angle, scale = uniform[:, 0] * math.radians(12), 1 + 0.12 * uniform[:, 1]
    cos, sin = torch.cos(angle) * scale, torch.sin(angle) * scale
    matrix = torch.stack(
        [cos, -sin + 0.15 * uniform[:, 2], 0.14 * uniform[:, 3], sin, cos, 0.14 * uniform[:, 4]], 1
    )
    grid = F.affine_grid(matrix.view(n, 2, 3), list(images.shape), align_corners=False)
    if kind == "elastic":
        coarse = torch.randn(n, 2, 5, 5, generator=generator) * 0.06
        smooth = F.interpolate(coarse, images.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + smooth.permute(0, 2, 3, 1)  # (n, h, w, 2)
    return F.grid_sample(images, grid.to(images.device), align_corners=False)


def move(images: Tensor, generator: torch.Generator, *, scale: Tensor | None = None) -> Tensor:
    """Move every image (n, channels, h, w) by up to 6 % of its width, each its own way; edges are repeated.

    Parameters
    ----------
    images : (n, channels, h, w)
    generator : torch.Generator
        On the CPU.
    scale : (n,), optional
        Factor by which each image grows smaller around its middle.
    """
    matrix = torch.eye(2, 3).repeat(len(images), 1, 1)
    if scale is not None:
        matrix[:, :, :2] *= scale[:, None, None]
    matrix[:, :, 2] = 0.12 * (torch.rand(len(images), 2, generator=generator) * 2 - 1)
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False).to(images.device)
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)
