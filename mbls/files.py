"""Files that are written whole or not at all, and read within limits; text, JSON, tables and arrays."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

__all__ = [
    "MAX_BYTES",
    "MAX_TEXT",
    "atomic_write",
    "check_file_name",
    "read_json",
    "read_npy",
    "read_npz",
    "write_json",
    "write_table",
    "write_text",
]

#: The most bytes that an array file may hold, unpacked: 2 GiB, a float32 volume of 512 x 512 x 2048 voxels. A file of a
#: kilobyte can claim, or unpack to, more than any machine has.
MAX_BYTES = 2**31
#: The most bytes of a text that is read whole, such as a JSON file: 16 MiB.
MAX_TEXT = 2**24


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


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Args:
        path: the file.

    Raises:
        OSError: no such file, or one that may not be read.
        ValueError: not JSON, nested too deeply, or above :data:`MAX_TEXT` bytes.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "numbers.json"
        >>> write_json([1, 2], path)
        >>> read_json(path)
        [1, 2]
    """
    size = path.stat().st_size
    if size > MAX_TEXT:
        raise ValueError(f"{path}: got {size} bytes of JSON, expected at most {MAX_TEXT}")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: cannot be read as JSON ({error})") from error


def check_file_name(path: Path, name: str) -> None:
    """Raise ValueError where a name that a file gives would lead to another folder.

    Args:
        path: the file that gives it.
        name: of a case, of which the name of a file is made.

    Example:
        >>> check_file_name(Path("index.json"), "../patient001")
        Traceback (most recent call last):
        ValueError: index.json: got the case '../patient001', expected a name without folders
    """
    if name in ("", "..") or name != Path(name).name or "\0" in name:
        raise ValueError(f"{path}: got the case {name!r}, expected a name without folders")


def read_npz(path: Path, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Arrays of an .npz file; never a pickle.

    Args:
        path: the file.
        names: of the arrays; None takes all.

    Returns:
        Name -> array.

    Raises:
        OSError: no such file, or one that may not be read.
        ValueError: damaged, without one of the arrays, or above :data:`MAX_BYTES` when unpacked.
    """
    import numpy as np

    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                size = sum(entry.file_size for entry in archive.infolist())
            if size > MAX_BYTES:
                raise ValueError(f"{size} bytes when unpacked, expected at most {MAX_BYTES}")
            with np.load(file) as content:
                arrays = {name: content[name] for name in (content.files if names is None else names)}
            if not all(isinstance(array, np.ndarray) for array in arrays.values()):
                raise ValueError("a part that is no array")
            return arrays
        except Exception as error:  # each kind of damage has its own
            raise ValueError(f"{path}: cannot be read as npz ({error}), expected a complete file") from error


def read_npy(path: Path) -> np.ndarray:
    """The array of an .npy file; never a pickle.

    Raises:
        OSError: no such file, or one that may not be read.
        ValueError: damaged, or above :data:`MAX_BYTES`.
    """
    import numpy as np

    with path.open("rb") as file:
        try:
            size = os.fstat(file.fileno()).st_size
            if size > MAX_BYTES:
                raise ValueError(f"{size} bytes, expected at most {MAX_BYTES}")
            # The map refuses a header that claims more than the file holds.
            return np.array(np.load(path, mmap_mode="r"))
        except Exception as error:  # each kind of damage has its own
            raise ValueError(f"{path}: cannot be read as npy ({error}), expected a complete file") from error


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
