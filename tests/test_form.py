"""How the code reads: how much a line carries, and whether docstrings name the shapes of arrays."""

import ast
import re
import statistics
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "twcli"
MOST_A_LINE = 4.0
SHAPED = 0.95

# An axis suffix on a name, or a shape in parentheses: (N, D), (..), (tokens of y,).
SUFFIX = re.compile(r"_[A-Za-z0-9]*[A-Z][A-Za-z0-9]*$")
SHAPE = re.compile(
    r"\((?:\.\.\.?|(?:sum|tokens) [^()]*|[A-Za-z0-9][A-Za-z0-9 +*/-]*)(?:,[^()]*)?\)"
)
ARRAY = re.compile(r"\b(ndarray|Tensor)\b")
# What holds arrays of several shapes.
HOLDER = re.compile("Callable|dict|Mapping")

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(node, public=True):
    """(qualified name, function, whether it is public) of all below a node."""
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, Function | ast.ClassDef):
            yield from functions(child, public)
            continue
        shown = public and not child.name.startswith("_")
        if isinstance(child, Function):
            yield child.name, child, shown
        inner = functions(child, shown and isinstance(child, ast.ClassDef))
        yield from ((f"{child.name}.{name}", below, seen) for name, below, seen in inner)


def all_functions():
    for file in sorted(PACKAGE.rglob("*.py")):
        for name, function, public in functions(ast.parse(file.read_text("utf-8"))):
            yield f"{file.relative_to(PACKAGE.parent)}::{name}", function, public


def of_body(function):
    """Expressions and statements of the body."""
    nodes = [node for statement in function.body for node in ast.walk(statement)]
    return sum(isinstance(node, ast.expr | ast.stmt) for node in nodes)


def expressions(function):
    """Expressions of the whole function, annotations and defaults included."""
    return sum(isinstance(node, ast.expr) for node in ast.walk(function))


@pytest.mark.parametrize("count", [of_body, expressions])
def test_a_line_carries_one_step(count):
    """Nodes of the syntax tree a line, from `def` to the end, as the median over functions."""
    density = {}
    for name, function, _ in all_functions():
        lines = function.end_lineno - function.lineno + 1
        density[f"{name} (line {function.lineno})"] = count(function) / lines
    median = statistics.median(density.values())
    densest = sorted(density, key=density.get, reverse=True)[:10]
    shown = "\n".join(f"  {density[name]:.1f}  {name}" for name in densest)
    assert median <= MOST_A_LINE, (
        f"{median:.2f} nodes a line; open expressions into named steps, first in\n{shown}"
    )


def is_array(annotation):
    if annotation is None:
        return False
    text = ast.unparse(annotation)
    return bool(ARRAY.search(text)) and not HOLDER.search(text)


def names_its_shapes(function):
    """Whether each array has an axis suffix or there is a shape for it in the docstring."""
    text = ast.get_docstring(function) or ""
    shapes = len(SHAPE.findall(text))
    given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    unnamed = [a for a in given if is_array(a.annotation) and not SUFFIX.search(a.arg)]
    said = [a for a in unnamed if shapes and re.search(rf"\b{a.arg}\b.*\(", text)]
    if is_array(function.returns) and not shapes:
        return False
    return len(said) == len(unnamed) or shapes >= len(unnamed)


def test_public_functions_name_the_shapes_of_their_arrays():
    with_arrays = []
    without = []
    for name, function, public in all_functions():
        if not public:
            continue
        assert ast.get_docstring(function), name
        given = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
        if is_array(function.returns) or any(is_array(a.annotation) for a in given):
            with_arrays.append(name)
            if not names_its_shapes(function):
                without.append(name)
    share = 1 - len(without) / len(with_arrays)
    assert share >= SHAPED, f"{share:.1%} of {len(with_arrays)}; not in " + ", ".join(without)
