"""`make mutants`: small wrong changes to a module, one at a time; those that its tests
do not notice are listed.

    python -m tests.mutants twcli/training/loss.py tests/training/test_loss.py

Each mutant lives in a process forked from this one, which has imported everything but the module.
"""

import ast
import contextlib
import copy
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch  # noqa: F401  so that no child has to
from hypothesis import Phase, settings

OTHER = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.And: ast.Or,
    ast.Or: ast.And,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
    ast.Pow: ast.Mult,
}
# times that the tests of the module as it is take: a mutant that takes longer never ends
PATIENCE = 20


def changes(node: ast.AST) -> Iterator[ast.AST]:
    """What may stand in a node's place."""
    match node:
        case ast.Compare(ops=[kind]) | ast.BinOp(op=kind) | ast.BoolOp(op=kind) if (
            type(kind) in OTHER
        ):
            other = copy.deepcopy(node)
            if isinstance(node, ast.Compare):
                other.ops = [OTHER[type(kind)]()]
            else:
                other.op = OTHER[type(kind)]()
            yield other
        case ast.UnaryOp(op=ast.Not() | ast.USub() | ast.Invert(), operand=operand):
            yield operand
        case ast.Constant(value=bool() as value):
            yield ast.Constant(not value)
        case ast.Constant(value=int() | float() as value):
            yield ast.Constant(value + 1)
        case ast.IfExp(test=test, body=body, orelse=orelse):
            yield ast.IfExp(test, orelse, body)
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            yield ast.Pass()
        case ast.Return(value=ast.expr() as value) if ast.unparse(value) != "None":
            yield ast.Return(ast.Constant(None))


def mutants(tree: ast.Module) -> Iterator[tuple[int, str, str, ast.Module]]:
    """(line, before, after, module) of each."""
    for number, node in enumerate(ast.walk(tree)):
        for other in changes(node):
            whole = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(whole)) if i == number)
            parent, name, index = next(
                (p, field, i)
                for p in ast.walk(whole)
                for field, value in ast.iter_fields(p)
                for i, child in enumerate(value if isinstance(value, list) else [value])
                if child is target
            )
            other = ast.copy_location(other, node)
            if isinstance(getattr(parent, name), list):
                getattr(parent, name)[index] = other
            else:
                setattr(parent, name, other)
            yield (
                node.lineno,
                ast.unparse(node),
                ast.unparse(other),
                ast.fix_missing_locations(whole),
            )


def survives(module: str, tree: ast.Module, tests: list[str], seconds: float = 600) -> bool:
    pid = os.fork()
    if pid == 0:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        code = 1
        with contextlib.suppress(BaseException):
            import importlib.util

            spec = importlib.util.find_spec(module)
            made = importlib.util.module_from_spec(spec)
            sys.modules[module] = made
            setattr(sys.modules[module.rpartition(".")[0]], module.rpartition(".")[2], made)
            exec(compile(tree, spec.origin, "exec"), made.__dict__)
            code = pytest.main(
                [
                    "-x",
                    "-q",
                    "-p",
                    "no:cacheprovider",
                    "-W",
                    "ignore::pytest.PytestAssertRewriteWarning",
                    *tests,
                ]
            )
        os._exit(int(code))
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


def main() -> None:
    file, tests = Path(sys.argv[1]), sys.argv[2:]
    settings.register_profile("first failure", phases=(Phase.explicit, Phase.generate))
    settings.load_profile("first failure")
    module = ".".join(file.with_suffix("").parts)
    __import__(module.rpartition(".")[0])
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):  # annotations are no code
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.copy_location(ast.Constant(""), node)
    begin = time.monotonic()
    assert survives(module, tree, tests), "the tests fail on the module as it is"
    limit = PATIENCE * (time.monotonic() - begin)
    tried = 0
    for line, before, after, mutant in mutants(tree):
        tried += 1
        if survives(module, mutant, tests, limit):
            print(f"{file}:{line}: {before[:100]}  ->  {after[:100]}", flush=True)
    print(f"{file}: {tried} mutants tried; those above were not noticed")


if __name__ == "__main__":
    main()
