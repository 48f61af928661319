"""The course's own parts: explorers and predictions, which need the course extra, and the checks of the exercises."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbls.course import exercises
    from mbls.course.cards import loss_cards
    from mbls.course.explorers import (
        BootstrapExplorer,
        CalibrationMapExplorer,
        LogitExplorer,
        MarginExplorer,
        NeighbourExplorer,
        ReliabilityExplorer,
        SliceExplorer,
        VoxelExplorer,
    )
    from mbls.course.predictions import ask, my_predictions, reveal

__all__ = [
    "BootstrapExplorer",
    "CalibrationMapExplorer",
    "LogitExplorer",
    "MarginExplorer",
    "NeighbourExplorer",
    "ReliabilityExplorer",
    "SliceExplorer",
    "VoxelExplorer",
    "ask",
    "exercises",
    "loss_cards",
    "my_predictions",
    "reveal",
]
_PREDICTIONS = ("ask", "my_predictions", "reveal")


def __getattr__(name: str) -> Any:
    """What needs widgets is imported when it is asked for, so that the exercises do without."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "exercises":
        import importlib

        return importlib.import_module("mbls.course.exercises")
    if name == "loss_cards":
        from mbls.course.cards import loss_cards

        return loss_cards
    from mbls.course import explorers, predictions

    return getattr(predictions if name in _PREDICTIONS else explorers, name)
