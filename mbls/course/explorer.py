"""What all explorers of :mod:`mbls.course.explorers` share: sliders, and a picture and a sentence that follow them.

The picture is an ``ipywidgets.Image`` with the PNG of one figure, whose artists are updated in place. Widgets that
capture output (``Output``, ``interact``) sometimes hang notebook runners, and they flicker. Where no kernel runs, the
same PNG is shown.

While a slider is dragged, no more positions are sent than the kernel can draw: Jupyter's widget manager waits until the
kernel is idle and then sends only the latest position.
"""

from __future__ import annotations

import html
import io
from typing import Any, ClassVar

import numpy as np
from matplotlib.artist import Artist
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import imsave
from PIL import Image

try:
    import ipywidgets
    from traitlets import HasTraits, Int, TraitType, link
except ImportError as error:
    raise ImportError("the explorers need ipywidgets and traitlets: pip install 'mbls[course]'") from error

from mbls.plots import DPI, SHOWN_DPI, Picture, new_figure

__all__ = ["Explorer"]


class Explorer(HasTraits):
    """State in traits, numbers computed from it, a view that follows.

    A subclass declares traits with ``.tag(label=...)`` (and ``step=...`` for numbers), and says with
    ``panels``, ``size`` and ``alt`` what its figure is, and with ``static`` which traits matter most. Then it defines

    - ``new_figure()``: only where its axes are not a plain grid;
    - ``compute()``: the numbers of the present state, nothing drawn and nothing changed;
    - ``draw(axes)``: makes all artists, once, with fixed limits, and returns those that move;
    - ``update(numbers)``: moves them;
    - ``describe(numbers)``: one line of text with the figures that matter.

    Setting a trait, from code or by a slider, computes and draws again. ``numbers`` holds the latest numbers and
    ``png`` the latest picture.

    Args:
        state: initial values of traits.

    Raises:
        ValueError: a name that is no trait of the explorer.
        traitlets.TraitError: a value outside a trait's range.

    Example:
        >>> from mbls.course.explorers import LogitExplorer
        >>> LogitExplorer(cavity=2.0)
        LogitExplorer(background=0.0, myocardium=1.0, cavity=2.0): d = (2.0, 1.0, 0.0); winner LV with probability 0.665
    """

    panels: ClassVar[tuple[int, int]] = (1, 2)  # rows, columns
    size: ClassVar[tuple[float, float]] = (9.0, 3.4)  # inches
    alt: ClassVar[str] = ""
    #: One or two traits that a page without a kernel lets its reader change.
    static: ClassVar[tuple[str, ...]] = ()
    #: What the picture shows, for :func:`mbls.plots.new_figure`; None: a formula.
    data: str | None = None

    def __init__(self, **state: Any) -> None:
        unknown = sorted(set(state) - set(self.state_names))
        if unknown:
            raise ValueError(f"state: got {', '.join(unknown)}, expected some of {', '.join(self.state_names)}")
        super().__init__(**state)
        self._figure, axes = self.new_figure()
        self._figure.set_dpi(DPI)
        self._canvas = FigureCanvasAgg(self._figure)
        self._moving = sorted(self.draw(axes), key=lambda artist: artist.get_zorder())
        self.numbers = self.compute()
        self.update(self.numbers)
        # The layout and all fixed artists are drawn once; an update draws only the moving ones, which is much faster.
        self._canvas.draw()
        self._figure.set_layout_engine("none")
        for artist in self._moving:
            artist.set_animated(True)
        self._canvas.draw()
        self._background = self._canvas.copy_from_bbox(self._figure.bbox)
        width = f"{int(self.size[0] * SHOWN_DPI)}px"
        self.image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(width=width, max_width="100%"))
        self.readout = ipywidgets.HTML()
        self.controls = {name: self._control(name) for name in self.state_names}
        for name, control in self.controls.items():
            link((control, "value"), (self, name))
        self.view = ipywidgets.VBox([*self.controls.values(), self.image, self.readout])
        self._show()
        self.observe(self._refresh, names=self.state_names)

    @property
    def state_names(self) -> list[str]:
        """Traits that make up the state, in the order of their controls."""
        return [
            name
            for name, trait in vars(type(self)).items()
            if isinstance(trait, TraitType) and "label" in trait.metadata
        ]

    @property
    def state(self) -> dict[str, Any]:
        """The present state, by name."""
        return {name: getattr(self, name) for name in self.state_names}

    def new_figure(self) -> tuple[Figure, np.ndarray]:
        """The figure and its axes, row by row."""
        figure, axes = new_figure(*self.panels, *self.size, data=self.data)
        return figure, axes.ravel()

    def compute(self) -> Any:
        """The numbers of the present state; draws and changes nothing."""
        raise NotImplementedError

    def draw(self, axes: np.ndarray) -> list[Artist]:
        """Make all artists, once, with fixed limits.

        Args:
            axes: the figure's axes, row by row.

        Returns:
            The artists that :meth:`update` moves.
        """
        raise NotImplementedError

    def update(self, numbers: Any) -> None:
        """Move the artists.

        Args:
            numbers: from :meth:`compute`.
        """
        raise NotImplementedError

    def describe(self, numbers: Any) -> str:
        """One line of text with the figures that matter.

        Args:
            numbers: from :meth:`compute`.
        """
        raise NotImplementedError

    @property
    def png(self) -> bytes:
        """The present picture."""
        return self.image.value

    def limits(self, name: str) -> tuple[float, float]:
        """Smallest and largest value of a number of the state. A subclass overrides it if they depend on its data.

        Args:
            name: of the trait.
        """
        trait: Any = self.traits()[name]  # Int or Float: traitlets types both as TraitType, which has no limits
        return trait.min, trait.max

    def choices(self, name: str) -> list[tuple[str, Any]]:
        """Labels and values of a trait that is chosen from a list; empty for a number.

        Args:
            name: of the trait.
        """
        return []

    def without_effect(self) -> set[str]:
        """Names of the state that the present picture does not depend on; their controls are greyed out."""
        return set()

    def _control(self, name: str) -> ipywidgets.Widget:
        trait = self.traits()[name]
        value = getattr(self, name)
        common = {
            "description": trait.metadata["label"],
            "style": {"description_width": "190px"},
            "layout": {"width": "560px"},
        }
        if choices := self.choices(name):
            return ipywidgets.SelectionSlider(options=choices, value=value, **common)
        low, high = self.limits(name)
        kind = ipywidgets.IntSlider if isinstance(trait, Int) else ipywidgets.FloatSlider
        return kind(value=value, min=low, max=high, step=trait.metadata.get("step", 1), **common)

    def _refresh(self, change: Any) -> None:
        self.numbers = self.compute()
        self.update(self.numbers)
        self._show()

    def _show(self) -> None:
        self._canvas.restore_region(self._background)
        for artist in self._moving:
            artist.draw(self._canvas.get_renderer())
        picture = io.BytesIO()
        imsave(picture, np.asarray(self._canvas.buffer_rgba()), format="png", pil_kwargs={"compress_level": 1})
        self.image.value = picture.getvalue()
        idle = self.without_effect()
        for name, control in self.controls.items():
            control.set_trait("disabled", name in idle)
        text = html.escape(self.describe(self.numbers))
        self.readout.value = f'<div role="status" aria-live="polite" class="mbls-readout">{text}</div>'

    def __repr__(self) -> str:
        state = ", ".join(f"{name}={value!r}" for name, value in self.state.items())
        return f"{type(self).__name__}({state}): {self.describe(self.numbers)}"

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        """The live view; beside it the picture and the text, for readers without a kernel."""
        live: dict[str, Any] = dict(self.view._repr_mimebundle_(**options) or {})
        alt = f"{self.alt} {self.describe(self.numbers)}"
        content = io.BytesIO()
        Image.open(io.BytesIO(self.png)).convert("RGB").save(content, "webp", quality=90)
        picture = Picture(alt, "image/webp", content.getvalue(), round(self.size[0] * SHOWN_DPI))
        # The class is what the site looks for.
        shown = picture.html.replace("<img ", '<img class="mbls-explorer" ', 1)
        return {**live, "text/html": shown, "text/plain": repr(self)}
