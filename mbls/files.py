"""Files that are written whole or not at all; text, JSON and tables."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["atomic_write", "write_json", "write_table", "write_text"]


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary name to write to, renamed at the end: a reader sees the old file or the new one, never a part."""
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_table(table: pd.DataFrame, path: Path) -> None:
    write_text(table.to_csv(index=False), path)


def write_json(value: Any, path: Path) -> None:
    write_text(json.dumps(value, indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(text)
