"""The σ-aware U-Net (DDPM++ in Song et al. 2021 and Karras et al. 2022): images in, images of the same shape out."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from ebm.accepted import whole
from ebm.nets.attention import Attention
from ebm.nets.layers import Conv2d, GroupNorm, Modulation, NoiseEmbedding, zero
from ebm.nets.memory_format import concatenate


class Block(nn.Module):
    """Residual block: norm, convolution, norm modulated by σ, convolution; optionally attention after it."""

    def __init__(self, before: int, after: int, embedding: int, *, attention: bool) -> None:
        super().__init__()
        self.norm1, self.norm2 = GroupNorm(before), GroupNorm(after)
        self.conv1 = Conv2d(before, after, 3, padding=1)
        self.conv2 = zero(Conv2d(after, after, 3, padding=1))
        self.modulation = Modulation(embedding, after)
        self.skip = Conv2d(before, after, 1) if before != after else nn.Identity()
        self.attention = Attention(after) if attention else nn.Identity()

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        h, inner = self.norm1.skip_and_norm(h, silu=True)
        inner = self.conv1(inner)
        inner = self.conv2(self.norm2.silu(inner, *self.modulation.coefficients(embedding)))
        out: Tensor = self.attention(self.skip(h) + inner)
        return out


class UNet(nn.Module):
    """U-Net over ``len(multipliers)`` resolutions with ``blocks`` residual blocks each (one more on the way up).

    y (B, C, H, W), c_noise (B,) -> (B, C, H, W). The first resolution is H / patch (space-to-depth); attention
    follows every block at the levels listed in ``attention`` (0 is the finest) and in the middle. Raises ValueError
    for sizes that make no network and where the image's sides don't divide by patch · 2^(levels − 1).
    """

    def __init__(
        self, *, channels: int, width: int, multipliers: Sequence[int], blocks: int, attention: Sequence[int], patch: int
    ) -> None:
        super().__init__()
        whole(1, channels=channels, width=width, patch=patch)
        whole(0, blocks=blocks)
        if not multipliers or min(multipliers) < 1:
            raise ValueError(f"multipliers: {[*multipliers]} are not accepted; each must be at least 1, one for each level")
        if not {*attention} <= {*range(len(multipliers))}:
            raise ValueError(f"attention: {[*attention]} are not accepted; levels go from 0 to {len(multipliers) - 1}")
        self.patch, self.stride = patch, patch * 2 ** (len(multipliers) - 1)
        emb = 4 * width
        self.embedding = NoiseEmbedding(emb)
        self.stem = Conv2d(channels * patch**2, width, 3, padding=1)
        self.encoder, self.decoder = nn.ModuleList(), nn.ModuleList()
        skips, now = [width], width
        for level, multiplier in enumerate(multipliers):
            if level:
                self.encoder.append(Conv2d(now, now, 3, stride=2, padding=1))
                skips.append(now)
            for _ in range(blocks):
                self.encoder.append(Block(now, width * multiplier, emb, attention=level in attention))
                now = width * multiplier
                skips.append(now)
        self.middle = nn.ModuleList([Block(now, now, emb, attention=True), Block(now, now, emb, attention=False)])
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.decoder.append(Block(now + skips.pop(), width * multiplier, emb, attention=level in attention))
                now = width * multiplier
            if level:
                self.decoder.append(Upsample(now))
        self.norm = GroupNorm(now)
        self.out = zero(Conv2d(now, channels * patch**2, 3, padding=1, bias=False))

    def forward(self, y: Tensor, c_noise: Tensor) -> Tensor:
        if y.shape[2] % self.stride or y.shape[3] % self.stride:
            raise ValueError(f"image size: {tuple(y.shape[2:])} is not accepted; both sides must divide by {self.stride}")
        embedding = self.embedding(c_noise)
        h = self.stem(F.pixel_unshuffle(y, self.patch))
        skips = [h]
        for layer in self.encoder:
            h = layer(h, embedding) if isinstance(layer, Block) else layer(h)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, embedding)
        for layer in self.decoder:
            h = layer(concatenate(h, skips.pop()), embedding) if isinstance(layer, Block) else layer(h)
        return F.pixel_shuffle(self.out(self.norm.silu(h)), self.patch)


class Upsample(nn.Module):
    """Doubles both sides by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        out: Tensor = self.conv(F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return out
