"""Batches of a `.beton` file through FFCV in an order of our own, and the guard around a pipeline that may hang."""
from __future__ import annotations

import contextlib
import functools
import queue
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
COMPILED: list[Any] = []  # kept alive: FFCV changes numba types that are dictionary keys, so freeing its code prints a KeyError
CURE = ("`pip install ffcv` needs a C++ compiler, pkg-config, OpenCV and libturbojpeg (Debian: build-essential pkg-config "
        "libopencv-dev libturbojpeg0-dev); tools/build_ffcv_wheel.sh makes a wheel that needs none of them")


@functools.cache  # so that it warns once
def uses_ffcv(loader: str) -> bool:
    """Whether images are read by FFCV: where it can't be imported "auto" warns and "ffcv" raises ValueError; "plain" does
    without it."""
    check_loader(loader)
    if loader == "plain":
        return False
    missing = import_ffcv()
    if missing and loader == "ffcv":
        raise ValueError(f"loader: 'ffcv' is not accepted; {missing}. {CURE}")
    if missing:
        warnings.warn(f"{missing}; images are read by a plain loop instead: the same batches, more slowly. {CURE}",
                      stacklevel=3)
    return not missing


def check_loader(loader: str) -> None:
    """Raises ValueError unless it is auto, ffcv or plain."""
    if loader not in ("auto", "ffcv", "plain"):
        raise ValueError(f"loader: {loader!r} is not accepted; choose auto, ffcv or plain")


def import_ffcv() -> str:
    """Imports FFCV without letting it change torch's number of threads; returns what is wrong where it can't be imported."""
    threads = torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it imports modules that are deprecated in newer Pythons
            import numba
            from numba.core import config

            with plain_dictionaries():
                from ffcv.pipeline.compiler import Compiler
    except ImportError as error:
        return f"FFCV cannot be imported ({error})"
    finally:
        torch.set_num_threads(threads)  # its import sets torch to one thread

    def set_num_threads(cls: type[Compiler], n: int) -> None:
        cls.num_threads = min(n, vars(config)["NUMBA_NUM_THREADS"])
        numba.set_num_threads(cls.num_threads)

    # FFCV's own also sets torch's threads, for the whole process and again at each epoch, in the middle of training:
    # that would slow the CPU's arithmetic and change its rounding.
    Compiler.set_num_threads = classmethod(set_num_threads)
    return ""


@contextlib.contextmanager
def plain_dictionaries() -> Iterator[None]:
    """Context in which numba's typed dictionary is Python's: on import FFCV makes one with two entries, which it reads from
    Python alone and which would cost seconds of compiling in every process."""
    from numba import typed

    compiled, typed.Dict = typed.Dict, dict
    try:
        yield
    finally:
        typed.Dict = compiled


def ffcv_batches(
    path: Path, orders: Iterable[NDArray[np.int64]], *, batch: int, workers: int, device: torch.device
) -> Iterator[Tensor]:
    """Images (batch, 3, H, W) uint8 on the CPU, each order's in turn, ready to be copied to ``device``."""
    from ffcv.fields.decoders import SimpleRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import ToTensor

    from ebm.data.planes import Planes

    if device.type == "cuda":
        torch.cuda.set_device(device)  # this thread's: FFCV takes the current device's streams
    loader: Any = None
    for order in orders:
        rows = order.astype(np.uint64)
        if loader is None:  # the seed is unused, but without one it would draw from numpy's global stream
            loader = Loader(str(path), batch_size=batch, num_workers=workers, os_cache=True, seed=0, indices=rows,
                            order=OrderOption.SEQUENTIAL, drop_last=False,
                            pipelines={"image": [SimpleRGBImageDecoder(), Planes(), ToTensor()]})
            COMPILED.append(loader.code)
        # Loader takes only its own orders (it tests isinstance where it means issubclass); the sequential one
        # goes through these indices as they stand.
        loader.traversal_order.indices = loader.first_traversal_order = rows
        epoch = iter(loader)
        try:
            for (images,) in epoch:
                # FFCV reuses its buffer, so what leaves here is a copy: made by numpy, since a parallel copy by torch in this
                # thread would start a second team of OpenMP threads, which would slow down all of torch's arithmetic.
                yield images.pin_memory() if device.type == "cuda" else torch.from_numpy(images.numpy().copy())
        finally:
            epoch.close()
            epoch.join(timeout=2.0)  # it reads that flag every half second, except where it waits to announce its end
            if epoch.is_alive():
                with contextlib.suppress(queue.Empty):
                    epoch.output_queue.get_nowait()
                epoch.join(timeout=1.0)


def guarded(source: Iterable[T], *, timeout: float, path: Path) -> Generator[T]:
    """Items of ``source``, read two ahead in a separate thread; raises TimeoutError if one takes ``timeout`` seconds.

    FFCV's pipeline thread ends silently when something raises inside it, and its reader then waits for ever.
    """
    box: queue.Queue[tuple[str, Any]] = queue.Queue(maxsize=2)
    stop = threading.Event()
    thread = threading.Thread(target=fill, args=(source, box, stop), daemon=True, name="ebm-data")
    thread.start()
    try:
        while True:
            try:
                kind, item = box.get(timeout=timeout)
            except queue.Empty:
                raise TimeoutError(f"{path}: no batch for {timeout:g} seconds; its file system hangs, or FFCV's "
                                   "pipeline stopped on an error (damaged file, memory full), printed above") from None
            if kind == "end":
                return
            if kind == "error":
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=4.0)  # a thread that hangs in FFCV stays behind; as a daemon it holds up nothing


def fill(source: Iterable[Any], box: queue.Queue[tuple[str, Any]], stop: threading.Event) -> None:
    """Puts ("item", x) for each x, then ("end", None) or ("error", exception) into the box, until ``stop`` is set."""
    def put(kind: str, item: object) -> bool:
        while not stop.is_set():
            try:
                box.put((kind, item), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    items = iter(source)
    try:
        while put("item", next(items)):
            pass
    except StopIteration:
        put("end", None)
    except BaseException as error:
        put("error", error)
    finally:
        if hasattr(items, "close"):
            items.close()
