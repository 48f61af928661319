"""Where the course's data is, and what it is called."""

from __future__ import annotations

import os
from pathlib import Path

import mbls
from mbls.data.phantom import is_phantom, make_phantom

__all__ = ["data_home", "data_name", "find_data"]


def find_data(root: str | Path | None = None) -> Path:
    """Where the course's data is: ``root``, else ``$MBLS_DATA``, else ``data/acdc``, else ``data/phantom``, made on first use.

    ``data`` lies in the checkout when the package is installed from one (``pip install -e``), else in the working folder.

    Raises:
        FileNotFoundError: a root or $MBLS_DATA that is no folder.
    """
    for origin, given in (("root", root), ("MBLS_DATA", os.environ.get("MBLS_DATA") or None)):
        if given is not None:
            if not Path(given).is_dir():
                raise FileNotFoundError(f"{origin}: got {given}, expected an existing folder in the ACDC layout")
            return Path(given)
    home = data_home()
    real = home / "acdc"
    return real if real.is_dir() else make_phantom(home / "phantom")


def data_home() -> Path:
    """The folder ``data`` of the checkout, or of the working folder when the package was not installed from a checkout."""
    checkout = Path(mbls.__file__).resolve().parents[1]
    return (checkout if (checkout / "notebooks").is_dir() else Path.cwd()) / "data"


def data_name(root: str | Path) -> str:
    """ "phantom" or "ACDC": what every figure and table has to say about its data."""
    return "phantom" if is_phantom(root) else "ACDC"
