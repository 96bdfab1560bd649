"""Search a tree of two branches a node; the frontier after each step shows
which node is looked at next.

    x   from a to f : c > e f , a > c d , e > i j , d > g h
    y   a | c d | e f d | i j f d | j f d | f d | f c a                     depth_left
        a | c d | d e f | e f g h | f g h i j | f c a                       breadth_left
        c > e f | a > c d | f c a                                           climbing

depth_right and breadth_right take the branches from the right. The first node of a frontier gives
way to its branches until it is the goal. Every y ends in the path from the goal up. Judge:
examples.tasks.graph_search:judge
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

from examples.tasks.task import Task, last_part

LETTERS = "abcdefghijkl"
PROMPT = re.compile(r"from ([a-l]) to ([a-l]) : ([a-l] > [a-l] [a-l](?: , [a-l] > [a-l] [a-l])*)")

Tree = dict[str, list[str]]  # node -> its branches


def sample_prompt(rng: random.Random) -> str:
    """Both branches of the root divide, then one of the four below; the goal lies
    below the root's branches.
    """
    a, b, c, *below = nodes = rng.sample(LETTERS, 9)
    d, e, f, g, h, i = below
    edges = [(a, b, c), (b, d, e), (c, f, g), (below[rng.randrange(4)], h, i)]
    rng.shuffle(edges)
    listed = " , ".join(f"{node} > {left} {right}" for node, left, right in edges)
    return f"from {a} to {nodes[rng.randrange(3, 9)]} : {listed}"


def parse(x: str) -> tuple[Tree, str, str]:
    """The tree, its root and the goal."""
    match = PROMPT.fullmatch(" ".join(x.split()))
    if not match:
        raise ValueError(f"not a tree: {x!r}")
    root, goal, listed = match.groups()
    entries = [entry.split(" > ") for entry in listed.split(" , ")]
    tree = {node: branches.split() for node, branches in entries}
    children = [child for branches in tree.values() for child in branches]
    # With one parent a node and none for the root, what the root reaches has no cycle.
    if len(tree) < len(entries) or len(set(children)) < len(children) or root in children:
        raise ValueError(f"not a tree: {x!r}")
    if goal not in reached(tree, root):
        raise ValueError(f"no way to the goal: {x!r}")
    return tree, root, goal


def reached(tree: Tree, root: str) -> Iterator[str]:
    yield root
    for child in tree.get(root, []):
        yield from reached(tree, child)


def path_up(x: str) -> list[str]:
    """The nodes from the goal to the root."""
    tree, root, goal = parse(x)
    parents, path = {child: node for node, branches in tree.items() for child in branches}, [goal]
    while path[-1] != root:
        path.append(parents[path[-1]])
    return path


def frontiers(depth_first: bool, from_right: bool) -> Callable[[str], str]:
    def strategy(x: str) -> str:
        tree, root, goal = parse(x)
        frontier, parts = [root], [root]
        while frontier[0] != goal:
            node, *rest = frontier
            branches = tree.get(node, [])[:: -1 if from_right else 1]
            frontier = branches + rest if depth_first else rest + branches
            parts.append(" ".join(frontier))
        return " | ".join([*parts, answer(x)])

    return strategy


def climbing(x: str) -> str:
    """From the goal up: each node above with its branches."""
    tree = parse(x)[0]
    return " | ".join([*(f"{node} > {' '.join(tree[node])}" for node in path_up(x)[1:]), answer(x)])


def answer(x: str) -> str:
    return " ".join(path_up(x))


def answer_is_right(x: str, tokens: list[str]) -> bool:
    return last_part(tokens) == answer(x)


STRATEGIES = {
    "depth_left": frontiers(depth_first=True, from_right=False),
    "depth_right": frontiers(depth_first=True, from_right=True),
    "breadth_left": frontiers(depth_first=False, from_right=False),
    "breadth_right": frontiers(depth_first=False, from_right=True),
    "climbing": climbing,
}
TASK = Task(
    name="graph_search",
    sample_prompt=sample_prompt,
    strategies=STRATEGIES,
    answer=answer,
    answer_is_right=answer_is_right,
)
judge = TASK.judge
