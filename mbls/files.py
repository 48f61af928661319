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
    """A temporary name to write to, renamed at the end: a reader sees the old file or the new one, never a part.

    If the body raises, the temporary file is removed and the old file stays.

    Args:
        path: the file to write; its folder must exist.

    Yields:
        The temporary name, in the same folder.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with atomic_write(path) as part:
        ...     _ = part.write_text("1 2 3")
        >>> path.read_text()
        '1 2 3'
    """
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, without its index.

    Args:
        table: what to write.
        path: the file; its folder is made if it is missing.
    """
    write_text(table.to_csv(index=False), path)


def write_json(value: Any, path: Path) -> None:
    """Write a value as indented JSON.

    Args:
        value: anything that :func:`json.dumps` takes.
        path: the file; its folder is made if it is missing.

    Raises:
        TypeError: a value that JSON cannot hold.
    """
    write_text(json.dumps(value, indent=1) + "\n", path)


def write_text(text: str, path: Path) -> None:
    """Write a text, whole or not at all.

    Args:
        text: what to write.
        path: the file; its folder is made if it is missing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as part:
        part.write_text(text)
