"""From a config to samples: the pipeline, the names of files, and the files themselves."""
from __future__ import annotations

import io
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from ebm.data import to_float
from ebm.files import write_atomically
from ebm.pictures import save_grid
from ebm.precision import Precision
from ebm.train.distributed import World, device_name
from launch.config.build import build, naming, plain, seed
from launch.config.settings import precision, sampling_graph
from launch.drawing.batches import Drawn, compute_batches, delete_batches, digest, draw_batch
from launch.drawing.pipeline import Pipeline
from launch.job.faults import recording
from launch.run.folder import RunFolder
from launch.run.make import load_model
from launch.run.version import version


def prepare(cfg: DictConfig, world: World) -> Pipeline:
    """All that the samples depend on; raises ValueError or OSError for unusable settings, before any work."""
    folder = RunFolder(Path(cfg.run))
    config = folder.config()
    model, checkpoint, step = load_model(folder, checkpoint=plain(cfg, "checkpoint", str), ema=plain(cfg, "ema", int),
                                       device=world.device)
    pipeline = Pipeline(
        model=model, sampler=build(cfg.sampler, key="sampler"), shape=tuple(config.data.shape),
        seed=seed(cfg), precision=Precision(name=precision(cfg, world.device)), device=world.device, run=str(cfg.run),
        checkpoint=checkpoint, step=step,
        cuda_graph=sampling_graph(cfg, config, gpu=world.device.type == "cuda"))
    with naming("sampler."):  # samplers check their arguments when they are called
        replace(pipeline, cuda_graph=False).trajectory(range(1))
    return pipeline


def check_agreement(pipeline: Pipeline, world: World) -> None:
    """Raises ValueError on every process unless all have found the same checkpoint, which a run in training may replace, the
    same inputs of a task, and the same precision for `precision=auto`."""
    checkpoints = sorted(set(world.all_gather(pipeline.checkpoint)))
    if len(checkpoints) > 1:
        raise ValueError(f"checkpoint: processes have found different ones ({', '.join(checkpoints)}), as the run is being "
                         "trained; start again, or name one")
    precisions = sorted(set(world.all_gather(pipeline.precision.name)))
    if len(precisions) > 1:
        raise ValueError(f"precision: 'auto' is not accepted on nodes of different kinds; choose {' or '.join(precisions)}")
    inputs = world.all_gather(pipeline.task.identity if pipeline.task else {})
    differing = [key for key, value in inputs[0].items() if any(other.get(key) != value for other in inputs)]
    if differing:
        raise ValueError(f"task.{differing[0]}: processes have read different ones; it must be the same on every node")


def sample_stem(cfg: DictConfig, step: int) -> str:
    """The file name, without its ending, of samples drawn with this sampler, its settings, average and checkpoint."""
    hydra = HydraConfig.get()
    settings = [override[len("sampler"):].lstrip("./").replace("/", ".") for override in hydra.overrides.task
                if override.startswith(("sampler.", "sampler/"))]
    parts = [hydra.runtime.choices["sampler"], *sorted(settings), f"n{cfg.n}", f"seed{cfg.seed}", f"step{step}"]
    return "-".join([*parts, *([f"ema{cfg.ema}"] if cfg.ema else [])])


def identity(cfg: DictConfig, pipeline: Pipeline) -> dict[str, Any]:
    """All that samples depend on besides a task, by their protocol's keys."""
    return {"step": pipeline.step, "settings": OmegaConf.to_container(cfg.sampler, resolve=True),
            "precision": pipeline.precision.name, "device": device_name(pipeline.device), "checkpoint": pipeline.checkpoint,
            **{key: cfg[key] for key in ("n", "seed", "batch", "ema")}}


def draw_batches(cfg: DictConfig, pipeline: Pipeline, world: World) -> Path:
    """Draws all batches, each on one of the processes; the folder that holds them."""
    # The version of the batches' files, so that none is read that was written in another form. The number of images, too:
    # whoever has written his samples deletes the folder, and another process may still be drawing more.
    # Of the device only the type, as interrupted work may resume on a GPU of another model.
    about = [3, identity(cfg, pipeline) | {"device": pipeline.device.type},
             pipeline.task and [pipeline.task.name, pipeline.task.identity]]
    folder = world.broadcast_object(Path(cfg.out) / f".{digest(about)}")  # as rank 0 names it: paths may differ
    with recording(world, key="sample.cuda_graph"):
        compute_batches(folder, cfg.n, batch=cfg.batch, world=world, label="sample",
                        compute=lambda part: draw_batch(pipeline, part))
    pipeline.recorded.release()  # its memory may be needed for what is measured next
    return folder


def write_samples(cfg: DictConfig, pipeline: Pipeline, *, batches: Path) -> Path:
    """Writes the samples and deletes their batches; the protocol's path.

    These are `images`, uint8 (n, H, W, C), as .npz, pictures of the first hundred and of the trajectory, and the protocol.
    A task adds to the arrays and to the protocol, and may replace the first picture.
    """
    drawn = Drawn.read(batches, cfg.n, batch=cfg.batch)
    folder, stem, task = Path(cfg.out), sample_stem(cfg, pipeline.step), pipeline.task
    arrays, results, picture = {"images": drawn.images.permute(0, 2, 3, 1).numpy()}, dict[str, Any](), None
    if task:
        outcome = task.conditioning.outcome(pipeline, drawn.images)
        stem, picture = f"{task.label}-{stem}", outcome.picture
        arrays |= outcome.arrays
        results = {"task": {"name": task.name, "settings": OmegaConf.to_container(cfg.task, resolve=True),
                            "identity": task.identity, **outcome.results}}
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # numpy's stub takes a name for its own flag
    if picture is None:
        save_grid(to_float(drawn.images[:100]), folder / f"{stem}.png")
    else:
        write_atomically(folder / f"{stem}.png", picture)
    film = f"{stem}-trajectory.png"
    write_atomically(folder / film, drawn.film)
    protocol = {
        "run": str(cfg.run), "sampler": HydraConfig.get().runtime.choices["sampler"], "version": version(),
        **identity(cfg, pipeline), "nfe": drawn.nfe, "gradients": drawn.gradients, "not_finite": drawn.not_finite,
        "seconds": round(drawn.seconds, 3), "joules": drawn.joules, "time": round(time.time(), 2),
        **({"cuda_graph": True} if pipeline.cuda_graph else {}),  # which changes the seconds alone
        "trajectory": {"path": film, "rows": drawn.rows, "frames": drawn.frames}, **results}
    write_atomically(folder / f"{stem}.json", (json.dumps(protocol, indent=1) + "\n").encode())
    write_atomically(folder / f"{stem}.npz", buffer.getbuffer())  # last: its presence marks a point of a study as done
    if drawn.not_finite:
        print(f"note: {drawn.not_finite} of {len(drawn.images)} images are not finite (NaN or infinite); python "
              f"launch/diagnose.py run={cfg.run} says why", file=sys.stderr, flush=True)
    print(f"{len(drawn.images)} images: {folder / stem}.npz, picture: {folder / stem}.png", flush=True)
    delete_batches(batches)
    return folder / f"{stem}.json"
