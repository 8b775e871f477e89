#!/usr/bin/env python3
"""Writes a data set once as .beton files that training reads, each with a manifest (source, size, hash) beside it.

  shapes            the embedded set of coloured shapes; needs no download     -> data/shapes/{train,test}.beton
  cifar10           CIFAR-10, found in a folder or downloaded                  -> data/cifar10/{train,test}.beton
  folder PATH       every picture under a folder, cut square and resized       -> data/<folder>/train.beton
  npz FILE[:KEY]    one uint8 array of an .npz file                            -> data/<file>/train.beton

A file that is already there and agrees with its manifest is left as it is, so the command can be repeated. The same
images give the same bytes everywhere. Nothing half-written is ever left behind. Exit code 2 means bad input.
"""
from __future__ import annotations

import argparse
import signal
import sys
import warnings
from pathlib import Path
from typing import NoReturn

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # works from a checkout that is not installed

from ebm.data.beton import write_beton
from ebm.data.manifest import Manifest
from ebm.data.shapes import shapes
from ebm.data.sources import Source, UnreadableError, cifar10, folder, npz
from ebm.randomness import seed_of

Plan = dict[Path, Source]  # which file is to hold what


def plan_shapes(options: argparse.Namespace) -> Plan:
    """Training and test images come from unrelated seeds, so that neither count changes the other's images."""
    out, size = options.out or Path("data/shapes"), options.size
    train = shapes(count=options.count, size=size, seed=options.seed)
    return {out / "train.beton": train,
            out / "test.beton": shapes(count=options.test_count, size=size, seed=seed_of(options.seed, "test"))}


def plan_cifar10(options: argparse.Namespace) -> Plan:
    """The published training and test sets."""
    out = options.out or Path("data/cifar10")
    return {out / f"{split}.beton": cifar10(options.root, train=split == "train", download=options.download)
            for split in ("train", "test")}


def plan_folder(options: argparse.Namespace) -> Plan:
    """One file of all pictures."""
    out = out_file(options, options.path.resolve().name)
    return {out: folder(options.path, size=options.size, skip_unreadable=options.skip_unreadable)}


def plan_npz(options: argparse.Namespace) -> Plan:
    """One file of one array."""
    path, _, key = options.array.partition(":")
    return {out_file(options, Path(path).stem): npz(path, key=key or "images")}


def out_file(options: argparse.Namespace, name: str) -> Path:
    """The file to write; raises ValueError where a folder is given."""
    out: Path = options.out or Path("data", name, "train.beton")
    if out.is_dir() or not out.suffix:
        raise ValueError(f"--out {out} is not accepted; it must be a file, such as {out / 'train.beton'}")
    return out


def arguments() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    each = argparse.ArgumentParser(add_help=False)
    each.add_argument("--force", action="store_true", help="make the file again, whatever is there")
    each.add_argument("--verify", action="store_true", help="compare a file that is there with its hash as well")
    style = argparse.ArgumentDefaultsHelpFormatter
    kinds = parser.add_subparsers(required=True, metavar="{shapes,cifar10,folder,npz}")

    one = kinds.add_parser("shapes", parents=[each], formatter_class=style, help="the embedded set of coloured shapes")
    one.add_argument("--count", type=int, default=10_000, help="training images")
    one.add_argument("--test-count", type=int, default=1_000, help="test images")
    one.add_argument("--size", type=int, default=32, help="height and width in pixels")
    one.add_argument("--seed", type=int, default=0, help="the images depend on it alone")
    one.add_argument("--out", type=Path, help="folder for both files (data/shapes if not given)")
    one.set_defaults(plan=plan_shapes)

    one = kinds.add_parser("cifar10", parents=[each], formatter_class=style, help="CIFAR-10, both splits")
    one.add_argument("--root", type=Path, default=Path("data"), help="folder that holds cifar-10-batches-py")
    one.add_argument("--download", action=argparse.BooleanOptionalAction, default=True, help="fetch it if absent")
    one.add_argument("--out", type=Path, help="folder for both files (data/cifar10 if not given)")
    one.set_defaults(plan=plan_cifar10)

    one = kinds.add_parser("folder", parents=[each], formatter_class=style, help="a folder of pictures")
    one.add_argument("path", type=Path, help="searched with all its subfolders")
    one.add_argument("--size", type=int, default=32, help="height and width in pixels")
    one.add_argument("--out", type=Path, help="the file (data/<folder>/train.beton if not given)")
    one.add_argument("--skip-unreadable", action="store_true", help="leave out files that can't be read, and count them")
    one.set_defaults(plan=plan_folder)

    one = kinds.add_parser("npz", parents=[each], formatter_class=style, help="an array of an .npz file")
    one.add_argument("array", metavar="FILE[:KEY]", help="uint8 (N, H, W, 3), or grey; KEY is 'images' if not given")
    one.add_argument("--out", type=Path, help="the file (data/<file>/train.beton if not given)")
    one.set_defaults(plan=plan_npz)
    return parser


def prepare(path: Path, source: Source, *, force: bool, verify: bool) -> str:
    """Makes the file unless it is there; one line that says what was done. Raises ValueError if it holds other data."""
    if force or not path.exists() or not Manifest.beside(path).exists():  # without its manifest it can't be trusted
        manifest = write_beton(path, source.images(), source=source.name, count=source.count, progress=True)
        for note in source.notes:
            print(f"note: {note}", file=sys.stderr)
        return f"{path}: written, {describe(manifest)}"
    manifest = Manifest.load(path)
    if (manifest.source, manifest.count) != (source.name, source.count):
        raise ValueError(f"{path}: holds {describe(manifest)}, not {source.count} images of {source.name}; "
                         "give another --out, or --force to replace it")
    manifest.check(path, whole=verify)
    return f"{path}: up to date{', hash verified' if verify else ''}, {describe(manifest)}"


def describe(manifest: Manifest) -> str:
    """What a file holds, in a few words."""
    return (f"{manifest.count} images of {manifest.source} ({manifest.height} x {manifest.width}, "
            f"{manifest.bytes / 1e6:.1f} MB, SHA-256 {manifest.sha256[:12]})")


def stopped(_signal: int, _frame: object) -> NoReturn:
    """A terminated job removes its temporary file too."""
    sys.exit(128 + signal.SIGTERM)


def main() -> None:
    """Entry."""
    options = arguments().parse_args()
    signal.signal(signal.SIGTERM, stopped)
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"  # type: ignore[assignment]  # not the code that warns
    try:
        for path, source in options.plan(options).items():
            print(prepare(path, source, force=options.force, verify=options.verify))
    except UnreadableError as error:
        print(f"prepare_data: {error}\n--skip-unreadable leaves out what can't be read", file=sys.stderr)
        sys.exit(2)
    except (ValueError, OSError) as error:
        print(f"prepare_data: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("prepare_data: stopped; nothing half-written was left", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
