"""The manifest `<file>.json` beside a `.beton` file: what the file holds, its length and its hash."""
from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What one `.beton` file holds: the source's name, images, their size in pixels, the file's bytes and SHA-256."""

    source: str
    count: int
    height: int
    width: int
    bytes: int
    sha256: str

    @staticmethod
    def beside(path: str | Path) -> Path:
        """The manifest's own path."""
        return Path(f"{path}.json")

    @classmethod
    def load(cls, path: str | Path) -> Manifest:
        """Manifest of the `.beton` file ``path``; raises FileNotFoundError without one, ValueError if unreadable."""
        file = cls.beside(path)
        if not file.exists():
            absent = "no manifest beside it" if Path(path).exists() else "no such data file"
            kind = f" {Path(path).parent.name}" if Path(path).parent.name in ("shapes", "cifar10") else ""
            raise FileNotFoundError(f"{path}: {absent}; make it with tools/prepare_data.py{kind}")
        try:
            values = json.loads(file.read_text(encoding="utf-8"))
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: not a manifest ({error!r}); make the data again, with --force") from error

    def to_json(self) -> str:
        """The manifest's text, one field per line."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def check(self, path: str | Path, *, whole: bool) -> None:
        """Raises FileNotFoundError or ValueError unless ``path`` has this length and, where ``whole``, this hash."""
        path = Path(path)
        if not path.exists():
            raise FileNotFoundError(f"{path}: no such data file; make it with tools/prepare_data.py")
        if (size := path.stat().st_size) != self.bytes:
            raise ValueError(f"{path}: damaged: {size} bytes where its manifest says {self.bytes}; "
                             "make it again, with --force")
        if whole:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
            actual = digest.hexdigest()
            if actual != self.sha256:
                raise ValueError(f"{path}: damaged: SHA-256 {actual[:12]}... where its manifest says "
                                 f"{self.sha256[:12]}...; make it again, with --force")
