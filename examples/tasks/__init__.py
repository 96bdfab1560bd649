"""Synthetic tasks of several strategies; each module has a `TASK` and a `judge` for `twcli eval --judge`.

`string_editing` is held out: tune nothing on it, so that it can tell whether a recipe carries over.
"""

from examples.tasks import (
    base_conversion,
    graph_search,
    grid_pathfinding,
    linear_equations,
    multidigit_addition,
    sorting_algorithms,
    string_editing,
)
from examples.tasks.task import Task

TASKS: dict[str, Task] = {module.TASK.name: module.TASK for module in (
    sorting_algorithms, grid_pathfinding, multidigit_addition,
    linear_equations, base_conversion, graph_search, string_editing)}
