"""Where the course's data and its recorded tables are."""

from __future__ import annotations

import os
from pathlib import Path

from mbls.data.phantom import make_phantom

__all__ = ["data_home", "find_data", "recorded"]

_PACKAGE = Path(__file__).resolve().parents[1]


def find_data(root: str | Path | None = None) -> Path:
    """Where the course's data is: the first of ``root``, ``$MBLS_DATA``, ``data/acdc`` and ``data/phantom``.

    The phantom is made on first use. ``data`` lies in the checkout when the package is installed from one
    (``pip install -e``), else in the working folder.

    Raises:
        FileNotFoundError: a root or $MBLS_DATA that is no folder.
    """
    for origin, given in (("root", root), ("MBLS_DATA", os.environ.get("MBLS_DATA") or None)):
        if given is not None:
            if not Path(given).is_dir():
                raise FileNotFoundError(
                    f"{origin}: got {given}, expected an existing folder in the layout of ACDC or nnU-Net"
                )
            return Path(given)
    home = data_home()
    real = home / "acdc"
    return real if real.is_dir() else make_phantom(home / "phantom")


def data_home() -> Path:
    """The folder ``data`` of the checkout; of the working folder when the package was not installed from a checkout."""
    return (_checkout() or Path.cwd()) / "data"


def recorded(name: str) -> Path:
    """A file that comes with the course: the split of ACDC, or a table of a recorded run (``data/results``).

    In a checkout it is the file under ``data``; an installed package has copies in ``mbls/recorded``.

    Args:
        name: of the file, without a folder.

    Raises:
        FileNotFoundError: no such file; the message lists what there is.

    Example:
        >>> recorded("acdc_split.json").name
        'acdc_split.json'
    """
    folders = [_PACKAGE / "recorded"]
    if checkout := _checkout():
        folders += [checkout / "data" / "results", checkout / "data"]
    files = [path for folder in folders for path in folder.glob("*") if path.suffix in (".csv", ".json")]
    found = {path.name: path for path in files}  # of two with one name, the checkout's
    if name not in found:
        raise FileNotFoundError(f"name: got {name!r}, expected one of {', '.join(sorted(found)) or 'no file at all'}")
    return found[name]


def _checkout() -> Path | None:
    """The checkout that the package lies in; None where it is installed without one."""
    root = _PACKAGE.parent
    return root if (root / "notebooks").is_dir() else None
