"""Plain convolutional networks: images in, a small map of features out, for the pooled head."""
from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from ebm.accepted import whole
from ebm.nets.layers import Conv2d, Modulation, NoiseEmbedding


class CNN(nn.Module):
    """Convolutions that halve the image ``levels`` times and know nothing of σ: the energy most people try first.

    y (B, C, H, W), c_noise (B,) -> (B, 1, H / 2^levels, W / 2^levels). With ``sigma_aware`` each layer's channels
    are scaled and shifted by an embedding of the noise level. Raises ValueError for sizes that make no network.
    """

    def __init__(self, *, channels: int, width: int, levels: int, sigma_aware: bool) -> None:
        super().__init__()
        whole(1, channels=channels, width=width)
        whole(0, levels=levels)
        widths = [width * 2**level for level in range(levels + 1)]
        self.stem = Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(
            Conv2d(before, after, 4, stride=2, padding=1) for before, after in pairwise(widths)
        )
        # No bias: a constant added to an energy has no gradient, and DistributedDataParallel would wait for it.
        self.out = Conv2d(widths[-1], 1, 1, bias=False)
        self.embedding = NoiseEmbedding(4 * width) if sigma_aware else None
        self.modulations = nn.ModuleList(Modulation(4 * width, channels) for channels in widths if sigma_aware)

    def forward(self, y: Tensor, c_noise: Tensor) -> Tensor:
        embedding = None if self.embedding is None else self.embedding(c_noise)
        h = y
        for index, layer in enumerate([self.stem, *self.down]):
            h = layer(h)
            if embedding is not None:
                h = self.modulations[index](h, embedding)
            h = F.silu(h)
        out: Tensor = self.out(h)
        return out
