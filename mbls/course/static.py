"""Explorers for pages without a kernel: one picture and one sentence for each position of one or two sliders.

Everything is computed here; a page only chooses which picture to show (``site/static/explorers.js``).
"""

from __future__ import annotations

import io
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mbls.course.explorer import Explorer
from mbls.files import write_text

__all__ = ["positions", "write_static"]

#: So many positions has a slider at most: with two sliders an explorer stays under 3 MB.
MOST = {1: 41, 2: 11}
#: Width of the pictures, in pixels.
WIDTH = 1000


def positions(explorer: Explorer, name: str, most: int) -> list[Any]:
    """The values of a trait that a page offers, evenly spread, among them the present one.

    Args:
        explorer: whose trait.
        name: of the trait.
        most: how many values at most.

    Example:
        >>> from mbls.course.explorers import VoxelExplorer
        >>> positions(VoxelExplorer(margin=3.0), "margin", 5)
        [0.0, 2.5, 3.0, 5.0, 7.5, 10.0]
    """
    if choices := explorer.choices(name):
        return [value for _, value in choices]
    trait, (low, high) = explorer.traits()[name], explorer.limits(name)
    step = trait.metadata.get("step", 1)
    last = round((high - low) / step)
    places = np.linspace(0, last, min(most, last + 1)).round()
    values = {low + step * place for place in places} | {getattr(explorer, name)}
    kind = int if isinstance(getattr(explorer, name), int) else lambda value: float(np.round(value, 6))
    return sorted({kind(value) for value in values})


def write_static(explorer: Explorer, folder: Path, key: str) -> None:
    """Write ``KEY.js`` and the pictures ``KEY/I-J.webp`` and ``KEY/start.webp`` of an explorer.

    Its state is the same afterwards. The sliders are those of its ``static`` traits; the others stay where they are.

    Args:
        explorer: the explorer, in the state in which the page is to show it first.
        folder: where to.
        key: what the page calls it.
    """
    names = explorer.static
    start = {name: getattr(explorer, name) for name in names}
    values = {name: positions(explorer, name, MOST[len(names)]) for name in names}
    shutil.rmtree(folder / key, ignore_errors=True)  # another number of positions may have been drawn before
    (folder / key).mkdir(parents=True)
    told, size = {}, (0, 0)
    for place in itertools.product(*(range(len(values[name])) for name in names)):
        for name, number in zip(names, place, strict=True):
            setattr(explorer, name, values[name][number])
        picture = Image.open(io.BytesIO(explorer.png)).convert("RGB")
        size = (WIDTH, round(WIDTH * picture.height / picture.width)) if picture.width > WIDTH else picture.size
        where = "-".join(map(str, place))
        picture.resize(size, Image.Resampling.LANCZOS).save(folder / key / f"{where}.webp", quality=70, method=6)
        told[where] = explorer.describe(explorer.numbers)
    for name, value in start.items():
        setattr(explorer, name, value)
    first = "-".join(str(values[name].index(start[name])) for name in names)
    shutil.copy(folder / key / f"{first}.webp", folder / key / "start.webp")
    sliders = [
        {
            "name": name,
            "label": explorer.traits()[name].metadata["label"],
            "texts": [_text(explorer, name, value) for value in values[name]],
            "start": values[name].index(start[name]),
        }
        for name in names
    ]
    page = {"alt": explorer.alt, "width": size[0], "height": size[1], "sliders": sliders, "told": told}
    write_text(f"mblsExplorer({json.dumps(key)}, {json.dumps(page, ensure_ascii=False)});\n", folder / f"{key}.js")


def _text(explorer: Explorer, name: str, value: Any) -> str:
    """A value as its slider shows it."""
    of_choice = {choice: text for text, choice in explorer.choices(name)}
    return of_choice.get(value, f"{value:g}" if isinstance(value, float) else str(value))
