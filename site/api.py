"""The pages of the package, made from its docstrings: a table of all public names, and a page for each module."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType

from sphinx.pycode import ModuleAnalyzer

#: Module -> its heading, in the order of the table.
MODULES = {
    "mbls.losses": "Losses",
    "mbls.metrics": "Calibration metrics",
    "mbls.posthoc": "Calibration after training",
    "mbls.constraints": "Logit distances and constraints",
    "mbls.statistics": "Intervals and tests",
    "mbls.data": "Data",
    "mbls.networks": "Networks",
    "mbls.engine": "Fit, predict, judge",
    "mbls.report": "A report on predictions of any program",
    "mbls.study": "Comparisons of losses",
    "mbls.plots": "Figures",
    "mbls.adapters.torchmetrics": "For torchmetrics and Lightning",
    "mbls.adapters.monai": "For MONAI and ignite",
    "mbls.course": "The course",
    "mbls.course.exercises": "The exercises' checks",
}
_TABLE = """# The package, function by function

Made from the docstrings; their examples are run by the tests. A name leads to its page.
"""


def write_api(folder: Path) -> None:
    """Write ``api.md`` and a page for each module into ``folder/api``."""
    (folder / "api").mkdir(exist_ok=True)
    table = _TABLE
    for name, heading in MODULES.items():
        module = importlib.import_module(name)
        names = sorted(module.__all__, key=str.isupper)  # constants last
        # Reached from the table; fifteen lines more would only make the sidebar longer.
        page = f"---\norphan: true\n---\n\n# {heading}: `{name}`\n\n" + _rst(
            f".. automodule:: {name}\n   :no-members:\n"
        )
        page += "".join(_rst(_entry(module, each)) for each in names if not inspect.ismodule(getattr(module, each)))
        (folder / "api" / f"{name}.md").write_text(page, encoding="utf-8")
        rows = [f"   * - :py:obj:`~{name}.{each}`\n     - {_summary(module, each)}\n" for each in names]
        table += f"\n## {heading}: [`{name}`](api/{name}.md)\n\n"
        table += _rst(
            f".. py:currentmodule:: {name}\n\n.. list-table::\n   :widths: 30 70\n   :class: mbls-names\n\n"
            + "".join(rows)
        )
    (folder / "api.md").write_text(table, encoding="utf-8")


def _rst(text: str) -> str:
    return f"```{{eval-rst}}\n{text}```\n\n"


def _entry(module: ModuleType, name: str) -> str:
    """The directive that shows a name with all its text."""
    value = getattr(module, name)
    if inspect.isclass(value):
        return f".. autoclass:: {module.__name__}.{name}\n   :members:\n"
    if inspect.isfunction(value):
        return f".. autofunction:: {module.__name__}.{name}\n"
    comment = "\n".join(f"   {line}" for line in _comment(module, name))
    return f".. py:currentmodule:: {module.__name__}\n\n.. py:data:: {name}\n\n{comment}\n"


def _summary(module: ModuleType, name: str) -> str:
    """The first paragraph, in one line."""
    value = getattr(module, name)
    documented = inspect.isclass(value) or inspect.isfunction(value) or inspect.ismodule(value)
    text = inspect.getdoc(value) or "" if documented else "\n".join(_comment(module, name))
    return " ".join(text.split("\n\n")[0].split())


def _comment(module: ModuleType, name: str) -> list[str]:
    """What stands above a constant as ``#:``, in the module or in the part of the package that defines it."""
    parts = [f"{module.__name__}.{part.name}" for part in pkgutil.iter_modules(getattr(module, "__path__", []))]
    for part in [module.__name__, *parts]:
        found = ModuleAnalyzer.for_module(part).find_attr_docs().get(("", name))
        if found:
            return found
    raise LookupError(f"{module.__name__}.{name}: got no comment, expected one that begins with '#:' above it")
