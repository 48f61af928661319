"""Progress bars that ``--quiet`` silences."""

from __future__ import annotations

import os
from typing import Any

from tqdm.auto import tqdm

__all__ = ["progress_bar"]


def progress_bar(*args: Any, disable: bool = False, **options: Any) -> tqdm:
    """A bar of tqdm, unless TQDM_DISABLE is set.

    tqdm itself reads that variable when it is imported, which torch does before anybody can set it.

    Args:
        args: as :class:`tqdm.tqdm` takes them.
        disable: show nothing.
        options: as :class:`tqdm.tqdm` takes them.

    Example:
        >>> [number for number in progress_bar([1, 2], disable=True)]
        [1, 2]
    """
    return tqdm(*args, disable=disable or bool(os.environ.get("TQDM_DISABLE")), **options)
