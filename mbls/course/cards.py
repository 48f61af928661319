r"""A card for each loss of the course: its formula, what it does to a voxel and to its neighbours, and a picture.

All pictures show the same: an image that is blurred along one direction, so that a network can tell its columns apart
but not its rows. In it the border between two classes waves to and fro: within a column only the probability of the
structure is known. A loss is minimised over one pair of logits a column, with the loss of :mod:`mbls.losses` itself;
what comes out is what a network would say that was trained with it for a very long time.

Example:
    >>> loss_cards("ls", "mbls")
    Cards of losses: LS, MbLS
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from scipy.stats import norm

from mbls import plots
from mbls.losses import SVLSLoss, build_loss, parse_loss

__all__ = ["CARDS", "Card", "Cards", "loss_cards", "row_after_training"]

_COLUMNS, _ROWS = 25, 96
#: Columns from the middle, and the spread of the border, in voxels.
_PLACES = torch.arange(_COLUMNS) - _COLUMNS // 2
_SPREAD = 2.5
_SIGMAS = (0.5, 1.0, 2.0)


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        name: in full.
        specs: as tables and ``build_loss`` name it.
        formula: LaTeX.
        voxel: what it does to a voxel.
        neighbours: what the other voxels have to do with it.
        drawn: the spec that the picture is made with.
    """

    name: str
    specs: tuple[str, ...]
    formula: str
    voxel: str
    neighbours: str
    drawn: str


_NO_NEIGHBOURS = "Neighbours: none, each voxel for itself."
#: Short name -> card.
CARDS: dict[str, Card] = {
    "ce": Card(
        "CE, cross-entropy",
        ("ce",),
        r"-\log s_j",
        "Pulls the labelled class up by $1 - s_j$, for ever. It wants the truth itself: $s^* = q$.",
        _NO_NEIGHBOURS,
        "ce",
    ),
    "ce_dice": Card(
        "CE + Dice",
        ("ce_dice", "mbls_dice (Dice added to MbLS)"),
        r"-\log s_j + 1 - \tfrac{1}{K} \sum_k \frac{2 \sum_i s_{ik} y_{ik}}{\sum_i (s_{ik} + y_{ik})}",
        "Dice gains most if a voxel that is more likely in than out is counted in wholly: "
        "it drives probabilities to 0 and 1.",
        "Neighbours: all voxels $i$ of the image stand in one fraction, wherever they lie.",
        "ce_dice",
    ),
    "ls": Card(
        "LS, label smoothing",
        ("ls",),
        r"(1-\alpha)(-\log s_j) + \tfrac{\alpha}{K} \sum_k (-\log s_k)",
        r"CE with the label $(1-\alpha)\, y + \alpha u$: every voxel is told to leave $\alpha$ to all classes alike.",
        _NO_NEIGHBOURS,
        "ls:alpha=0.1",
    ),
    "fl": Card(
        "FL, focal loss",
        ("fl",),
        r"-(1-s_j)^\gamma \log s_j",
        "Turns voxels down that are already right, and so pulls all probabilities towards the middle.",
        _NO_NEIGHBOURS,
        "fl:gamma=3",
    ),
    "ecp": Card(
        "ECP, explicit confidence penalty",
        ("ecp",),
        r"-\log s_j - \alpha H(s)",
        "Rewards entropy. It pulls most at middling distances and lets go of voxels that are almost certain.",
        _NO_NEIGHBOURS,
        "ecp:alpha=0.1",
    ),
    "svls": Card(
        "SVLS, spatially varying label smoothing",
        tuple(f"svls:sigma={sigma:g}" for sigma in _SIGMAS),
        r"-\sum_k (G_\sigma * y)_k \log s_k",
        "CE with blurred labels: a voxel is told the mix of the labels around it. Far from a border nothing changes.",
        r"Neighbours: 3 × 3 voxels, weighted by a Gaussian of width $\sigma$; all neighbours together weigh as much as "
        r"the voxel itself. A larger $\sigma$ gives more to the corners.",
        "svls:sigma=1",
    ),
    "mbls": Card(
        "MbLS, margin-based label smoothing",
        ("mbls:margin=5", "mbls:margin=10"),
        r"-\log s_j + \tfrac{\lambda}{K} \sum_k \max(0, d_k - m)",
        "CE as long as the winner leads by at most $m$; beyond that each loser is pulled back with $\\lambda / K$.",
        _NO_NEIGHBOURS,
        "mbls:margin=2",
    ),
    "nacl": Card(
        "NACL, neighbour-aware calibration loss",
        ("nacl",),
        r"-\log s_j + \tfrac{\alpha}{K} \sum_k |l_k - r_k|",
        r"Each logit is pulled with $\alpha / K$ towards $r_k$, a number from 0 to 1: "
        "an equality again, and a strong one.",
        "Neighbours: $r_k$ is the share of the 3 × 3 voxels around that have the label $k$.",
        "nacl:alpha=0.1",
    ),
    "l1ace": Card(
        "L1-ACE, average calibration error as a loss",
        ("ce_hard_l1ace", "ce_soft_l1ace", "ce_dice_hard_l1ace", "mbls_hard_l1ace"),
        r"-\log s_j + \tfrac{1}{K} \sum_k \tfrac{1}{B} \sum_b |e_{bk} - o_{bk}|",
        "A voxel is pushed by the gap of its bin: mean probability $e$ against the share $o$ of voxels with that "
        "label.",
        "Neighbours: in probability, not in space. All voxels of an image that share a bin are pushed together "
        "(<em>soft</em>: shared between two bins). The truth has no gaps, so here nothing is left to push.",
        "ce_hard_l1ace",
    ),
}


def row_after_training(spec: str) -> np.ndarray:
    """The probability of the structure in each column, where training with a loss ends.

    Args:
        spec: of a loss, such as "mbls:margin=2".

    Raises:
        ValueError: an unknown loss or option.

    Example:
        >>> profile = row_after_training("ls:alpha=0.2")
        >>> [round(float(profile[place]), 2) for place in (0, 12, 24)]
        [0.1, 0.5, 0.9]
    """
    return _trained_row(spec).copy()


@lru_cache
def _trained_row(spec: str, steps: int = 400) -> np.ndarray:
    loss, labels = build_loss(spec, 2), _labels()[None]
    logits = torch.zeros(1, 2, 1, _COLUMNS, requires_grad=True)
    optimizer = torch.optim.Adam([logits], lr=0.1, betas=(0.9, 0.95))  # FL's gradients shrink fast
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        loss(logits.expand(-1, -1, _ROWS, -1), labels).backward()
        optimizer.step()
        schedule.step()
    return logits.detach().softmax(1)[0, 1, 0].numpy()


def _labels() -> torch.Tensor:
    """The border's place is spread like a normal distribution, and changes little from row to row: (rows, columns)."""
    phase = (torch.arange(_ROWS) + 0.5) / _ROWS
    quantile = 1 - (2 * phase - 1).abs()  # up and down again
    border = torch.from_numpy(_SPREAD * norm.ppf(quantile.numpy()))
    return (_PLACES[None] > border[:, None]).long()


class Cards:
    """Some cards side by side, as HTML.

    Args:
        cards: short name -> card.
    """

    def __init__(self, cards: dict[str, Card]) -> None:
        self._cards = cards

    def _repr_mimebundle_(self, **options: Any) -> dict[str, str]:
        boxes = "".join(_box(name, card) for name, card in self._cards.items())
        html = f'<div style="display:flex;flex-wrap:wrap;gap:12px">{boxes}</div>'
        return {"text/html": html, "text/plain": repr(self)}

    def __repr__(self) -> str:
        return f"Cards of losses: {', '.join(card.name.split(',')[0] for card in self._cards.values())}"


def loss_cards(*names: str) -> Cards:
    """The cards of some losses.

    Args:
        names: of :data:`CARDS`; all of them if none is given.

    Raises:
        ValueError: a loss without a card.

    Example:
        See the top of this module.
    """
    unknown = [name for name in names if name not in CARDS]
    if unknown:
        raise ValueError(f"names: got {', '.join(map(repr, unknown))}, expected some of {', '.join(CARDS)}")
    return Cards({name: CARDS[name] for name in names or CARDS})


def _box(name: str, card: Card) -> str:
    style = f"border-top:5px solid {plots.loss_colour(name)};width:330px;padding:6px 8px;line-height:1.4"
    specs = ", ".join(f"<code>{spec}</code>" for spec in card.specs)
    pictures = _row_picture(name, card).html + (_kernel_picture(_SIGMAS).html if name == "svls" else "")
    return (
        f'<div style="{style}"><b>{card.name}</b><br>{specs}<div>{_math(f"${card.formula}$")}</div>'
        f"{pictures}<div>{_math(card.voxel)}</div><div>{_math(card.neighbours)}</div></div>"
    )


def _math(text: str) -> str:
    """Formulas between dollars as JupyterLab, nbconvert and Sphinx all typeset them inside HTML."""
    return re.sub(r"\$(.+?)\$", r'<span class="math notranslate nohighlight">\\(\1\\)</span>', text)


def _row_picture(name: str, card: Card) -> plots.Picture:
    figure, ((axes,),) = plots.new_figure(width=3.5, height=2.1, data=None)
    drawn = _drawn(card)
    axes.plot(_PLACES, _labels().double().mean(0), color=plots.COLOURS["chance"], linewidth=6, label="truth")
    axes.plot(_PLACES, row_after_training(card.drawn), color=plots.loss_colour(name), linewidth=2, label=drawn)
    axes.axvline(0, color=plots.COLOURS["guide"], linestyle=":", linewidth=1)
    axes.set(ylim=(-0.03, 1.03), xlabel="voxels across a border", ylabel="probability")
    axes.legend(frameon=False, fontsize=8)
    return plots.show(figure, f"The truth across a border, and what {drawn} makes of it: {_SEEN[name]}")


def _drawn(card: Card) -> str:
    """The loss of a picture, as the text names it: "LS, α = 0.1"."""
    _, options = parse_loss(card.drawn)
    signs = {"alpha": "α", "gamma": "γ", "sigma": "σ", "margin": "m"}
    return ", ".join([card.name.split(",")[0], *(f"{signs[option]} = {value}" for option, value in options.items())])


def _kernel_picture(sigmas: Sequence[float]) -> plots.Picture:
    figure, (row,) = plots.new_figure(1, len(sigmas), width=3.5, height=1.5, data=None)
    colours = LinearSegmentedColormap.from_list("weights", ["white", plots.loss_colour("svls")])
    for axes, sigma in zip(row, sigmas, strict=True):
        kernel = SVLSLoss(num_classes=2, sigma=sigma).kernel[0, 0].numpy()
        axes.imshow(kernel, cmap=colours, vmin=0, vmax=0.5)
        for (down, right), weight in np.ndenumerate(kernel):
            axes.text(right, down, f"{weight:.2f}", ha="center", va="center", fontsize=7)
        plots.blank_axes(axes, f"σ = {sigma:g}")
    return plots.show(figure, "Weights of the 3 x 3 voxels: 0.5 in the centre, the rest shared by the neighbours")


#: What is seen in each picture, for the alt text.
_SEEN = {
    "ce": "the truth itself",
    "ce_dice": "steeper than the truth, nearer to 0 and 1",
    "ls": "kept away from 0 and 1 everywhere",
    "fl": "much flatter than the truth",
    "ecp": "a little flatter than the truth",
    "svls": "almost the truth, a little wider at the border",
    "mbls": "the truth in the middle, held back at both ends",
    "nacl": "held back at both ends, much as the margin does, and a little flatter between",
    "l1ace": "the truth itself",
}
