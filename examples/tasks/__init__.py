"""Synthetic tasks of several strategies; each module has a `TASK` and a `judge`
for `twcli eval --judge`.

Nothing was or may be tuned on those of `HELD_ASIDE`, so that they can tell
whether a recipe carries over.
"""

from examples.tasks import (
    base_conversion,
    common_letters,
    graph_search,
    grid_pathfinding,
    letter_count,
    linear_equations,
    multidigit_addition,
    number_sum,
    sorting_algorithms,
    string_editing,
    string_reversal,
)
from examples.tasks.task import Task

TASKS: dict[str, Task] = {
    module.TASK.name: module.TASK
    for module in (
        sorting_algorithms,
        grid_pathfinding,
        multidigit_addition,
        linear_equations,
        base_conversion,
        graph_search,
        string_editing,
        string_reversal,
        common_letters,
        letter_count,
        number_sum,
    )
}
HELD_ASIDE = ("string_editing", "string_reversal", "common_letters", "letter_count", "number_sum")
