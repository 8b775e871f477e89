"""Feature spaces in which images are compared: the Inception of FID, any TorchScript file, a fixed random network."""
from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ebm.randomness import seed_of

INCEPTION = "inception"
# The weights that published figures come from: TensorFlow's of 2015-12-05.
PUBLISHED = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
NAME = re.compile(r"[a-z][a-z0-9]*")


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """A loaded feature network and all that its features depend on."""

    name: str
    sha256: str  # of its parameters
    settings: dict[str, Any]
    published: bool  # whether figures in these features may be called FID, KID and IS
    device: torch.device
    network: Callable[[Tensor], dict[str, Tensor]]

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """"features" (B, D) and, for Inception, "logits" (B, classes), float32, of uint8 images (B, 3, H, W).

        Computed in float32, without TF32. Raises ValueError for other images and for other outputs of the network.
        """
        check_images(images)
        exact = torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)
        with exact, torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            found = self.network(images.to(self.device))
        for name, rows in found.items():
            if not torch.is_tensor(rows) or rows.dim() != 2 or len(rows) != len(images) or not rows.isfinite().all():
                shape = tuple(rows.shape) if torch.is_tensor(rows) else type(rows).__name__
                raise ValueError(f"extractor: {self.name!r} is not accepted; its {name} must be finite, (B, D), not {shape}")
        return {name: rows.float() for name, rows in found.items()}

    @property
    def measure(self) -> dict[str, Any]:
        """The settings that two sets of features must share to be comparable."""
        return {"extractor": self.name, "extractor_sha256": self.sha256, **self.settings}

    @property
    def key(self) -> str:
        """Twelve hexadecimal digits that identify the space."""
        return hashlib.sha256(json.dumps(self.measure, sort_keys=True).encode()).hexdigest()[:12]


class Source(Protocol):
    """The description of an extractor in a config; files are read when it is loaded."""

    def load(self, device: torch.device) -> Extractor:
        """The extractor; raises FileNotFoundError, or ValueError for an unexpected file."""


def check_images(images: Tensor) -> None:
    """Raises ValueError unless images are uint8 (B, 3, H, W)."""
    if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != 3:
        raise ValueError(f"images: {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)} is not accepted; "
                         "features are of uint8 (B, 3, H, W)")


def verify_file(file: str, *, sha256: str | None, cure: str) -> tuple[Path, str]:
    """The path of a file and its SHA-256; raises FileNotFoundError, or ValueError for another hash, with the ``cure``."""
    path = Path(file).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"extractor.file: {str(path)!r}: no such file; {cure}")
    with open(path, "rb") as content:
        digest = hashlib.sha256()
        while block := content.read(1 << 20):
            digest.update(block)
    found = digest.hexdigest()
    if sha256 is not None and found != sha256:
        raise ValueError(f"extractor.file: {str(path)!r} is not accepted; its SHA-256 is {found[:12]}…, not {sha256[:12]}…; "
                         f"{cure}")
    return path, found


@dataclass(frozen=True, kw_only=True)
class Inception:
    """torch-fidelity's InceptionV3, in whose features FID (Heusel et al. 2017, arXiv 1706.08500) is defined.

    Weights are read from ``file`` alone. Where ``sha256`` accepts others than the published ones, figures in their features
    are not called FID.
    """

    file: str
    sha256: str

    def load(self, device: torch.device) -> Extractor:
        """Raises FileNotFoundError without the file, ValueError for another hash or without torch-fidelity."""
        cure = "tools/fetch_weights.py fetches it where there is a network"
        path, sha256 = verify_file(self.file, sha256=self.sha256, cure=cure)
        import_fidelity()
        from torch_fidelity import FeatureExtractorInceptionV3

        layers = ["2048", "logits_unbiased"]
        net = FeatureExtractorInceptionV3(INCEPTION, layers, feature_extractor_weights_path=str(path)).to(device)
        published = sha256 == PUBLISHED
        return Extractor(name=INCEPTION, sha256=sha256, settings={}, published=published, device=device,
                         network=lambda images: dict(zip(("features", "logits"), net(images), strict=True)))


@dataclass(frozen=True, kw_only=True)
class TorchScript:
    """Any image network in a TorchScript ``file``, under a ``name`` of the user's choice.

    Its input is (pixels − mean) / std with pixels in 0…255, resized to ``size`` (bicubic, antialiased; null: not resized). Its
    output is (B, D), or (B, D, h, w), which is averaged over h and w. ``sha256`` null accepts any file.
    """

    name: str
    file: str
    sha256: str | None
    size: int | None
    mean: Sequence[float]
    std: Sequence[float]

    def __post_init__(self) -> None:
        if self.name == INCEPTION or not NAME.fullmatch(self.name):
            raise ValueError(f"name: {self.name!r} is not accepted; it must be of a-z and 0-9, and not {INCEPTION!r}")
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, 3) or (key == "std" and min(values) <= 0):
                raise ValueError(f"{key}: {values!r} is not accepted; it must be one number, or one for each of 3 channels")
        if self.size is not None and self.size < 1:
            raise ValueError(f"size: {self.size!r} is not accepted; it must be at least 1 pixel, or null")

    def load(self, device: torch.device) -> Extractor:
        """Raises FileNotFoundError without the file, ValueError for another hash and for a file that is not TorchScript."""
        path, sha256 = verify_file(self.file, sha256=self.sha256, cure="give the file and the hash that belong together")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PyTorch recommends torch.export; the files remain readable
            try:
                net = torch.jit.load(str(path), map_location=device).eval()
            except RuntimeError as error:
                raise ValueError(f"extractor.file: {str(path)!r} is not accepted; it must be TorchScript") from error
        mean, std = (torch.tensor(values, device=device).view(1, -1, 1, 1) for values in (self.mean, self.std))

        def network(images: Tensor) -> dict[str, Tensor]:
            x = images.float()
            if self.size is not None:
                x = F.interpolate(x, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
            rows = net((x - mean) / std)
            return {"features": rows.mean((2, 3)) if torch.is_tensor(rows) and rows.dim() == 4 else rows}

        settings = {"size": self.size, "mean": [*self.mean], "std": [*self.std]}
        return Extractor(name=self.name, sha256=sha256, settings=settings, published=False, device=device, network=network)


@dataclass(frozen=True, kw_only=True)
class Random:
    """A convolutional network with fixed random weights (Naeem et al. 2020, arXiv 2002.09797, section 4), which needs no files.

    Features are the spatial means and standard deviations after each layer; layers have ``widths`` channels, each at half the
    resolution of the one before.
    """

    seed: int
    widths: Sequence[int]

    def __post_init__(self) -> None:
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"widths: {self.widths!r} is not accepted; each layer needs at least 1 channel")

    def load(self, device: torch.device) -> Extractor:
        """Reads nothing, so raises nothing."""
        weights = self.weights()
        digest = hashlib.sha256(b"".join(w.numpy().tobytes() for w in weights)).hexdigest()
        layers = [w.to(device) for w in weights]

        def network(images: Tensor) -> dict[str, Tensor]:
            x, rows = images.float() / 127.5 - 1, []
            rows.append(x.mean((2, 3)))  # colours, which the first layer does not see
            for weight in layers:
                x = F.relu(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), weight))
                rows += [x.mean((2, 3)), x.std((2, 3), correction=0)]
                x = F.avg_pool2d(x, 2, ceil_mode=True)
            return {"features": torch.cat(rows, 1)}

        settings = {"widths": [*self.widths], "extractor_seed": self.seed}
        return Extractor(name="random", sha256=digest, settings=settings, published=False, device=device, network=network)

    def weights(self) -> list[Tensor]:
        """One filter bank (out, in, 3, 3) per layer: uniform with He et al.'s variance, bit-identical on every machine."""
        banks: list[Tensor] = []
        for layer, (before, width) in enumerate(zip([3, *self.widths], self.widths, strict=False)):
            # numpy guarantees PCG64's raw bits, and IEEE 754 rounds + − × / and roots alike everywhere.
            bits = np.random.PCG64(seed_of(self.seed, "extractor", layer)).random_raw(width * before * 9)
            u = ((bits >> np.uint64(40)) * 2.0**-23 - 1).astype(np.float32).reshape(width, before, 3, 3)
            if layer == 0:  # zero mean: brightness would dominate edges
                u -= (u.sum((1, 2, 3), dtype=np.float64) / (before * 9)).astype(np.float32)[:, None, None, None]
            banks.append(torch.from_numpy(u * np.sqrt(np.float32(6 / (before * 9)))))
        return banks


def import_fidelity() -> Any:
    """The module torch_fidelity; raises ValueError with the command that installs it."""
    try:
        import torch_fidelity
    except ImportError as error:
        why = "not installed" if error.name == "torch_fidelity" else f"cannot be imported ({error})"
        raise ValueError(f"torch-fidelity: {why}; figures of quality need pip install -e '.[evaluate]'") from error
    return torch_fidelity
