"""Walk from start to goal on a grid; four orders of the row and column steps,
all of them shortest paths.

    x   start r2 c5 goal r4 c3 blocked r0 c7 r6 c1
    y   r2 c5 r3 c5 r4 c5 r4 c4 r4 c3                            rows_first

Blocked cells lie off the four paths. Judge: examples.tasks.grid_pathfinding:judge
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from itertools import pairwise

from examples.tasks.task import Task

SIZE = 10
APART = 2  # least distance in rows and in columns: below it two strategies agree
PROMPT = re.compile(r"start r(\d) c(\d) goal r(\d) c(\d) blocked r(\d) c(\d) r(\d) c(\d)", re.ASCII)
ROW, COLUMN = re.compile(r"r\d", re.ASCII), re.compile(r"c\d", re.ASCII)

Cell = tuple[int, int]


def show(*cells: Cell) -> str:
    return " ".join(f"r{row} c{column}" for row, column in cells)


def sample_prompt(rng: random.Random) -> str:
    """Start and goal far enough apart; whether the blocked cells lie off the
    paths is for `admits` to say.
    """
    while True:
        start, goal, *blocked = (divmod(rng.randrange(SIZE * SIZE), SIZE) for _ in range(4))
        if abs(start[0] - goal[0]) >= APART and abs(start[1] - goal[1]) >= APART:
            return f"start {show(start)} goal {show(goal)} blocked {show(*sorted(blocked))}"


def parse(x: str) -> tuple[Cell, Cell, set[Cell]]:
    match = PROMPT.fullmatch(" ".join(x.split()))
    if not match:
        raise ValueError(f"not a grid: {x!r}")
    numbers = list(map(int, match.groups()))
    start, goal, *blocked = zip(numbers[::2], numbers[1::2], strict=True)
    return start, goal, set(blocked)


def path(start: Cell, goal: Cell, rows_next: Callable[[int], bool]) -> list[Cell]:
    """Cells from start to goal; `rows_next(step)` is the axis wished for while both are open."""
    cells, (row, column) = [start], start
    while (row, column) != goal:
        if column == goal[1] or (row != goal[0] and rows_next(len(cells) - 1)):
            row += 1 if goal[0] > row else -1
        else:
            column += 1 if goal[1] > column else -1
        cells.append((row, column))
    return cells


def ordered(rows_next: Callable[[int], bool]) -> Callable[[str], str]:
    def strategy(x: str) -> str:
        start, goal, _ = parse(x)
        return show(*path(start, goal, rows_next))

    return strategy


STRATEGIES = {
    "rows_first": ordered(lambda step: True),
    "columns_first": ordered(lambda step: False),
    "staircase_rows": ordered(lambda step: step % 2 == 0),
    "staircase_columns": ordered(lambda step: step % 2 == 1),
}


def admits(x: str) -> bool:
    """Two different blocked cells, none on a strategy's path."""
    blocked = parse(x)[2]
    return len(blocked) == 2 and all(
        blocked.isdisjoint(cells(s(x).split())) for s in STRATEGIES.values()
    )


def cells(tokens: list[str]) -> list[Cell]:
    """Cells of tokens `r1 c2 ...`; empty where they are not that."""
    rows, columns = tokens[::2], tokens[1::2]
    well_formed = all(map(ROW.fullmatch, rows)) and all(map(COLUMN.fullmatch, columns))
    if len(rows) != len(columns) or not well_formed:
        return []
    return [(int(r[1:]), int(c[1:])) for r, c in zip(rows, columns, strict=True)]


def answer(x: str) -> str:
    return show(parse(x)[1])


def answer_is_right(x: str, tokens: list[str]) -> bool:
    """Unit steps from start to goal that enter no blocked cell; any such
    path, not only a strategy's.
    """
    start, goal, blocked = parse(x)
    walk = cells(tokens)
    steps = pairwise(walk)
    return (
        bool(walk)
        and walk[0] == start
        and walk[-1] == goal
        and blocked.isdisjoint(walk)
        and all(abs(a[0] - b[0]) + abs(a[1] - b[1]) == 1 for a, b in steps)
    )


TASK = Task(
    name="grid_pathfinding",
    sample_prompt=sample_prompt,
    strategies=STRATEGIES,
    answer=answer,
    answer_is_right=answer_is_right,
    admits=admits,
)
judge = TASK.judge
