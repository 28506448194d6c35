"""What the assertions of a notebook cell or a test compare: every comparison in an `assert` is seen with both its
numbers.

With DENSE_SSL_ASSERTS = a file, each comparison of floats is added to it as a line of JSON, and a failing assert
does not end the run (`tests/arithmetic.py`).
"""

import ast
import builtins
import json
import operator
import os
from collections import Counter
from numbers import Number
from typing import Any

SIGNS = {ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">=", ast.Eq: "==", ast.NotEq: "!="}
HOLDS = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
    "==": operator.eq,
    "!=": operator.ne,
}
OUT = os.environ.get("DENSE_SSL_ASSERTS")
MOST = 61  # of one comparison; what is compared more often is a property over random examples, not a measurement
seen: Counter[tuple[str, str]] = Counter()
false: list[str] = []  # the comparisons of the assert in progress that did not hold


def number(value: Any) -> float | None:
    "A scalar of any library as a float; None for anything else, booleans included."
    if hasattr(value, "item") and getattr(value, "ndim", 1) == 0:
        value = value.item()
    return float(value) if isinstance(value, Number) and not isinstance(value, bool | complex) else None


def compared(where: str, source: str, sign: str, left: Any, right: Any) -> Any:
    "`left sign right`; noted where both are numbers."
    held = HOLDS[sign](left, right)
    a, b = number(left), number(right)
    if a is not None and b is not None:
        if not held:
            false.append(f"{a:.6g} {sign} {b:.6g}")
        floats = any(isinstance(x, float) or hasattr(x, "item") for x in (left, right))
        seen[where, source] += 1
        if OUT and floats and sign not in ("==", "!=") and seen[where, source] <= MOST:
            write({"where": where, "source": source, "sign": sign, "left": a, "right": b})
    return held


def failed(where: str, source: str) -> None:
    "Note an assert that did not hold, and go on."
    write({"where": where, "source": source, "failed": " and ".join(false[-3:])})


def write(line: dict) -> None:
    with open(OUT, "a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


builtins.__compared__, builtins.__failed__, builtins.__false__ = compared, failed, false


class Asserts(ast.NodeTransformer):
    """Rewrites the asserts of one cell or file, called `where`."""

    def __init__(self, where: str = ""):
        self.where, self.inside = where, False

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        where, source = ast.Constant(f"{self.where}:{node.lineno}"), ast.Constant(ast.unparse(node))
        self.inside, before = True, self.inside
        node.test = self.visit(node.test)
        self.inside = before
        start = ast.Expr(_call("__false__.clear"))
        if OUT:
            node = ast.If(ast.UnaryOp(ast.Not(), node.test), [ast.Expr(_call("__failed__", where, source))], [])
        return [ast.fix_missing_locations(ast.copy_location(part, node)) for part in (start, node)]

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if not self.inside or len(node.ops) > 1 or type(node.ops[0]) not in SIGNS:
            return node
        words = (f"{self.where}:{node.lineno}", ast.unparse(node), SIGNS[type(node.ops[0])])
        return ast.copy_location(_call("__compared__", *map(ast.Constant, words), node.left, node.comparators[0]), node)


def _call(name: str, *arguments: ast.expr) -> ast.Call:
    return ast.Call(ast.parse(name, mode="eval").body, list(arguments), [])
