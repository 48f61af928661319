"""The course's own parts: the explorers, which need the course extra, and the checks of the exercises."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mbls.course import exercises
    from mbls.course.explorers import (
        LogitExplorer,
        MarginExplorer,
        ReliabilityExplorer,
        SliceExplorer,
        VoxelExplorer,
    )

__all__ = ["LogitExplorer", "MarginExplorer", "ReliabilityExplorer", "SliceExplorer", "VoxelExplorer", "exercises"]


def __getattr__(name: str) -> Any:
    """Explorers are imported when one is asked for, so that the exercises do without widgets."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "exercises":
        import importlib

        return importlib.import_module("mbls.course.exercises")
    from mbls.course import explorers

    return getattr(explorers, name)
