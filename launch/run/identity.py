"""What makes two configs one run: all keys but those that only say where, how fast or how closely watched."""
from __future__ import annotations

from omegaconf import DictConfig, OmegaConf

from launch.config.keys import flat

# What a resumed run may change without becoming another run; any other key must be what it was.
FREE = ("run", "device", "timeout_seconds", "peers_seconds", "hang_seconds", "preflight", "log_every", "save.every",
        "save.keep", "preview", "diagnose", "sampler", "budget.images", "budget.micro_batch", "data.train", "data.test",
        "data.resident_bytes", "data.workers", "data.loader", "channels_last", "cuda_graph", "experiment", "track")


def difference(old: DictConfig, new: DictConfig) -> list[str]:
    """The keys that must not differ between two starts of one run, and do, as "key: old -> new"."""
    before, after = (flat(OmegaConf.to_container(cfg)) for cfg in (old, new))
    names = [name for name in sorted({*before, *after}) if not is_free(name)]
    return [f"{name}: {before.get(name)!r} -> {after.get(name)!r}" for name in names if before.get(name) != after.get(name)]


def is_free(name: str) -> bool:
    """Whether a resumed run may change this dotted key."""
    return any(name == free or name.startswith(f"{free}.") for free in FREE)
