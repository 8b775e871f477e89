"""From a config to samples: the artist, where its images go and under what name, and the files that hold them."""
from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from tqdm import tqdm

from ebm.data import to_float
from ebm.files import write_atomically
from ebm.pictures import save_grid
from ebm.precision import Precision
from ebm.train.distributed import World, device_name
from launch.config.build import build, naming, plain, seed
from launch.config.settings import precision
from launch.drawing.artist import Artist, Drawn, collect, put_aside
from launch.drawing.commission import Commission
from launch.run.folder import RunFolder
from launch.run.make import load_model
from launch.run.version import version


def prepare(cfg: DictConfig, world: World) -> tuple[Artist, int]:
    """All that the images are a function of, checked, and the step of the checkpoint they come from."""
    folder = RunFolder(Path(cfg.run))
    config = folder.config()
    model, checkpoint, step = load_model(folder, checkpoint=plain(cfg, "checkpoint", str), ema=plain(cfg, "ema", int),
                                       device=world.device)
    artist = Artist(
        model=model, sampler=build(cfg.sampler, key="sampler"), shape=tuple(config.data.shape),
        seed=seed(cfg), precision=Precision(name=precision(cfg, world.device)), device=world.device, checkpoint=checkpoint)
    with naming("sampler."):  # the samplers check their values when they are called, before any work
        artist.trajectory(range(1))
    return artist, step


def agreed(artist: Artist, world: World) -> None:
    """Raises ValueError on every process where they have found different checkpoints, as of a run that is being trained, or
    different inputs of a task, or where their nodes take `precision=auto` for different ones."""
    checkpoints = sorted(set(world.everyone(artist.checkpoint)))
    if len(checkpoints) > 1:
        raise ValueError(f"checkpoint: processes have found different ones ({', '.join(checkpoints)}), as the run is being "
                         "trained; start again, or name one")
    precisions = sorted(set(world.everyone(artist.precision.name)))
    if len(precisions) > 1:
        raise ValueError(f"precision: 'auto' is not accepted on nodes of different kinds; choose {' or '.join(precisions)}")
    inputs = world.everyone(artist.identity if isinstance(artist, Commission) else {})
    differing = [key for key, value in inputs[0].items() if any(other.get(key) != value for other in inputs)]
    if differing:
        raise ValueError(f"task.{differing[0]}: processes have read different ones; see that it is the same on every node")


def name(cfg: DictConfig, step: int) -> str:
    """A file name that tells apart the images of other samplers, settings, averages and checkpoints of a run."""
    hydra = HydraConfig.get()
    settings = [override[len("sampler"):].lstrip("./").replace("/", ".") for override in hydra.overrides.task
                if override.startswith(("sampler.", "sampler/"))]
    parts = [hydra.runtime.choices["sampler"], *sorted(settings), f"n{cfg.n}", f"seed{cfg.seed}", f"step{step}"]
    return "-".join([*parts, *([f"ema{cfg.ema}"] if cfg.ema else [])])


def fingerprint(cfg: DictConfig, step: int, artist: Artist) -> str:
    """A name for all that the batches put aside are a function of."""
    # The first: how batches are put aside, so that none is taken up that was written in another way.
    # How many there are in all as well: who has gathered his own deletes them, and another may still be drawing.
    what = ["2", OmegaConf.to_container(cfg.sampler, resolve=True), artist.seed, cfg.n, cfg.batch, cfg.ema, step,
            artist.checkpoint, artist.precision.name, artist.device.type]
    what += [artist.task, artist.identity] if isinstance(artist, Commission) else []
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def drawn_aside(cfg: DictConfig, artist: Artist, step: int, world: World, *, parts: list[range]) -> Path:
    """Draws the batches of this process, with a bar on rank 0, and waits for the others'; the folder that holds them all."""
    aside = world.share(Path(cfg.out) / f".{fingerprint(cfg, step, artist)}")  # by rank 0's words: paths may differ
    with tqdm(total=sum(map(len, parts)), unit="img", desc="sample", disable=not world.is_main, dynamic_ncols=True) as bar:
        for part in parts:
            put_aside(aside, part, artist)
            bar.update(len(part))
    world.everyone(None)  # the last batch has been written
    return aside


def gathered(cfg: DictConfig, artist: Artist, step: int, *, aside: Path) -> Path:
    """Writes all that was put aside, which is then deleted; the protocol's place."""
    protocol = write(cfg, collect(aside, cfg.n, batch=cfg.batch, device=device_name(artist.device)), step, artist)
    delete(aside)
    return protocol


def delete(aside: Path) -> None:
    """Removes a folder of batches as one: half of it would be taken for batches that were drawn."""
    gone = aside.with_name(f"{aside.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    with contextlib.suppress(FileNotFoundError):
        aside.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)


def write(cfg: DictConfig, drawn: Drawn, step: int, artist: Artist) -> Path:
    """Writes `images`, uint8 (n, H, W, C), as .npz, the first hundred and the trajectory as pictures, and the protocol.

    A task adds to the arrays and to the protocol, and may have a picture of its own.
    """
    folder, label, commission = Path(cfg.out), name(cfg, step), artist if isinstance(artist, Commission) else None
    arrays, told, picture = {"images": drawn.images.permute(0, 2, 3, 1).numpy()}, dict[str, Any](), None
    if commission is not None:
        outcome = commission.outcome(drawn.images)
        label, picture = f"{commission.label}-{label}", outcome.picture
        arrays |= outcome.arrays
        told = {"task": {"name": commission.task, "settings": OmegaConf.to_container(cfg.task, resolve=True),
                         "identity": commission.identity, **outcome.told}}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a name for its own flag
    if picture is None:
        save_grid(to_float(drawn.images[:100]), folder / f"{label}.png")
    else:
        write_atomically(folder / f"{label}.png", picture)
    film = f"{label}-trajectory.png"
    write_atomically(folder / film, drawn.film)
    protocol = {
        "run": str(cfg.run), "sampler": HydraConfig.get().runtime.choices["sampler"], "step": step, "version": version(),
        "settings": OmegaConf.to_container(cfg.sampler, resolve=True), "precision": artist.precision.name,
        "device": drawn.device, "checkpoint": artist.checkpoint,
        **{key: cfg[key] for key in ("n", "seed", "batch", "ema")}, "nfe": drawn.nfe, "gradients": drawn.gradients,
        "not_finite": drawn.not_finite,
        "seconds": round(drawn.seconds, 3), "joules": drawn.joules, "time": round(time.time(), 2),
        "trajectory": {"path": film, "rows": drawn.rows, "frames": drawn.frames}, **told}
    write_atomically(folder / f"{label}.json", (json.dumps(protocol, indent=1) + "\n").encode())
    write_atomically(folder / f"{label}.npz", buffer.getbuffer())  # the last: a point of a study is done when it is there
    if drawn.not_finite:
        print(f"note: {drawn.not_finite} of {len(drawn.images)} images are not finite (NaN or infinite); python "
              f"launch/diagnose.py run={cfg.run} says why", file=sys.stderr, flush=True)
    print(f"{len(drawn.images)} images: {folder / label}.npz, picture: {folder / label}.png", flush=True)
    return folder / f"{label}.json"
