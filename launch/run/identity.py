"""When two configs describe the same run: all keys must agree but those of place, speed and logging."""
from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from launch.config.keys import flat

# The keys that a resumed run may change; all others must stay as they were.
FREE = ("run", "device", "timeout_seconds", "peers_seconds", "hang_seconds", "preflight", "log_every", "save.every",
        "save.keep", "preview", "diagnose", "sampler", "budget.images", "budget.micro_batch", "data.train", "data.test",
        "data.resident_bytes", "data.workers", "data.loader", "channels_last", "cuda_graph", "experiment", "track")


def difference(old: DictConfig, new: DictConfig) -> list[str]:
    """The keys that differ between two starts of one run but must not, as "key: old -> new"."""
    before, after = (flat(OmegaConf.to_container(cfg)) for cfg in (old, new))
    names = [name for name in sorted({*before, *after}) if not is_free(name)]
    return [f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in names if before.get(name) != after.get(name)]


def is_free(name: str) -> bool:
    """Whether a resumed run may change this dotted key."""
    return any(name == free or name.startswith(f"{free}.") for free in FREE)
