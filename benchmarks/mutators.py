"""Faults to plant: every small change of a source file that a proof of its mathematics ought to see.

    source -> [Mutant(line, label, before, after, source')]

Signs, factors, exponents, constants by 1, by 2 and by one part in a million, swapped arguments and results, swapped
names (t and s, p and q, alpha and sigma), neighbours among functions (exp and expm1), comparisons, ends of slices and
ranges.
Words are left alone: docstrings, `__all__`, annotations, messages of errors.
"""

import ast
import copy
import dataclasses
import hashlib
from collections.abc import Iterable, Iterator

__all__ = ["Mutant", "mutants"]

_OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.Gt), ast.LtE: (ast.Lt, ast.GtE), ast.Gt: (ast.GtE, ast.Lt), ast.GtE: (ast.Gt, ast.LtE),
    ast.Eq: (ast.NotEq,), ast.NotEq: (ast.Eq,), ast.Is: (ast.IsNot,), ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,), ast.NotIn: (ast.In,),
}  # fmt: skip
_PAIRS = (
    ("exp", "expm1"), ("log", "log1p"), ("sin", "cos"), ("sinh", "cosh"), ("max", "min"), ("maximum", "minimum"),
    ("argmax", "argmin"), ("sum", "mean"), ("zeros_like", "ones_like"), ("zeros", "ones"), ("all", "any"),
    ("floor", "ceil"), ("t", "s"), ("p", "q"), ("alpha", "sigma"), ("alpha_dot", "sigma_dot"),
)  # fmt: skip
_NEIGHBOURS = dict(_PAIRS) | {b: a for a, b in _PAIRS}
_EPSILON = 1 + 1e-6
_SHAPES = {"zeros_like", "ones_like", "full_like", "finfo", "result_type", "shape", "ndim"}
"""Functions that read no more than shape or type of their first argument: a fault there is no fault."""
_COMMUTATIVE = {
    "maximum", "minimum", "max", "min", "hypot", "logaddexp", "add", "multiply", "equal", "not_equal", "array_equal",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One fault: `before` became `after` on `line`, and the whole `source` that carries it.

    `name` is a fingerprint of the function or class with the fault in it, its words left out: by it a run that is taken up again
    knows what it has done in a file, and forgets no more than the functions that have changed since.
    """

    line: int
    label: str
    before: str
    after: str
    source: str
    name: str

    @property
    def diff(self) -> str:
        """The fault on one line: before => after."""
        return f"{self.before} => {self.after}"


def mutants(source: str) -> list[Mutant]:
    """Every fault of a source file, in the order of its lines; two faults with the same text are one."""
    lines = [line.encode() for line in source.splitlines(keepends=True)]
    found: dict[str, Mutant] = {}
    module, told = ast.parse(source), [_bare(statement) for statement in ast.parse(source).body]
    for node, label, after in _Finder().of(module):
        if isinstance(after, ast.AST) and ast.dump(after) == ast.dump(node):
            continue
        text = ast.unparse(after)
        text = text if isinstance(after, ast.Constant | ast.Name | ast.Attribute) else f"({text})"
        first, last = node.lineno - 1, node.end_lineno - 1
        head, tail = lines[first][: node.col_offset], lines[last][node.end_col_offset :]
        changed = b"".join([*lines[:first], head, text.encode(), tail, *lines[last + 1 :]]).decode()
        try:
            faulty = ast.parse(changed)
        except SyntaxError:
            continue
        at = next(i for i, statement in enumerate(module.body) if node.lineno <= statement.end_lineno)
        wrong = _bare(faulty.body[at])
        if wrong != told[at]:
            name = hashlib.sha256(f"{told[:at].count(told[at])}\n{label}\n{wrong}".encode()).hexdigest()[:16]
            found.setdefault(changed, Mutant(node.lineno, label, ast.unparse(node), ast.unparse(after), changed, name))
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _bare(statement: ast.stmt) -> str:
    """A statement without its docstrings, and wherever it stands."""
    for node in ast.walk(statement):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(statement)


Change = tuple[ast.expr, str, ast.expr]


class _Finder:
    """Walks a module, knowing the function it is in; yields (node, label, node instead)."""

    def __init__(self) -> None:
        self.scope: list[set[str]] = []
        self.products: set[int] = set()

    def of(self, node: ast.AST, parent: ast.AST | None = None, place: str = "") -> Iterator[Change]:
        if isinstance(node, ast.Raise | ast.JoinedStr | ast.Import | ast.ImportFrom) or _is_words(node):
            return
        if isinstance(node, ast.GeneratorExp | ast.ListComp) and _multiplies(node):
            self.products.add(id(node.generators[0].iter))
        if isinstance(node, ast.expr):
            yield from self._expression(node, parent, place)
        if isinstance(node, ast.Return) and node.value is not None:
            yield from self._returned(node.value)
        inside = isinstance(node, ast.FunctionDef | ast.Lambda)
        if inside:
            self.scope.append({n.id for n in ast.walk(node) if isinstance(n, ast.Name)} | _parameters(node))
        for field, child in _children(node):
            if not (isinstance(node, ast.Call) and _called(node) in _SHAPES and node.args and child is node.args[0]):
                yield from self.of(child, node, field)
        if inside:
            self.scope.pop()

    def _expression(self, node: ast.expr, parent: ast.AST | None, place: str) -> Iterator[Change]:
        match node:
            case ast.BinOp(op=ast.Pow()):
                yield node, "exponent dropped", node.left
            case ast.BinOp() if type(node.op) in _OPERATORS:
                yield node, "operator", _with(node, op=_OPERATORS[type(node.op)]())
            case ast.UnaryOp(op=ast.USub()):
                yield node, "minus dropped", node.operand
            case ast.UnaryOp(op=ast.Not()):
                yield node, "not dropped", node.operand
            case ast.BoolOp():
                yield node, "and/or", _with(node, op=ast.Or() if isinstance(node.op, ast.And) else ast.And())
            case ast.Compare():
                for i, op in enumerate(node.ops):
                    for other in _COMPARISONS[type(op)]:
                        yield node, "comparison", _with(node, ops=[*node.ops[:i], other(), *node.ops[i + 1 :]])
            case ast.IfExp():
                yield node, "branches swapped", _with(node, body=node.orelse, orelse=node.body)
            case ast.Call():
                yield from self._call(node)
            case ast.Constant() if isinstance(node.value, int | float) and not isinstance(node.value, bool):
                yield from _constant(node, parent, place)
            case ast.Name(ctx=ast.Load()) | ast.Attribute(ctx=ast.Load()):
                yield from self._renamed(node)

    def _renamed(self, node: ast.Name | ast.Attribute) -> Iterator[Change]:
        word = node.id if isinstance(node, ast.Name) else node.attr
        other = _NEIGHBOURS.get(word)
        if other is None:
            return
        if isinstance(node, ast.Attribute):
            yield node, "neighbour", _with(node, attr=other)
        elif word in ("max", "min", "sum", "all", "any") or any(other in names for names in self.scope):
            yield node, "neighbour", _with(node, id=other)

    def _call(self, node: ast.Call) -> Iterator[Change]:
        args = node.args
        called = _called(node)
        first = 1 if called == "clip" else 0  # a maximum of its first two
        for i in range(first, 0 if called in _COMMUTATIVE or id(node) in self.products else len(args) - 1):
            if not any(isinstance(arg, ast.Starred | ast.JoinedStr) or _is_text(arg) for arg in args[i : i + 2]):
                yield node, "arguments swapped", _with(node, args=[*args[:i], args[i + 1], args[i], *args[i + 2 :]])
        if isinstance(node.func, ast.Name) and node.func.id == "range":
            for i, arg in enumerate(args):
                for step in (1, -1):
                    yield node, "range end", _with(node, args=[*args[:i], _plus(arg, step), *args[i + 1 :]])

    def _returned(self, value: ast.expr) -> Iterator[Change]:
        if isinstance(value, ast.Tuple):
            for i in range(len(value.elts) - 1):
                swapped = [*value.elts[:i], value.elts[i + 1], value.elts[i], *value.elts[i + 2 :]]
                yield value, "results swapped", _with(value, elts=swapped)
            for element in value.elts:
                yield from self._returned(element)
        elif _is_number(value) and not (isinstance(value, ast.Call) and _called(value) in ("zeros", "zeros_like")):
            yield value, "result * (1 + 1e-6)", ast.BinOp(value, ast.Mult(), ast.Constant(_EPSILON))
            yield value, "result negated", ast.UnaryOp(ast.USub(), value)


def _constant(node: ast.Constant, parent: ast.AST | None, place: str) -> Iterator[Change]:
    c = node.value
    values = [c + 1, c * 2]
    if isinstance(parent, ast.Slice) or (isinstance(parent, ast.Subscript) and place == "slice"):
        values = [c + 1, c - 1]
    elif c in (0.5, 1):
        values.append(0.5 if c == 1 else 1)
    if isinstance(c, float) or isinstance(parent, ast.BinOp):
        values.append(c * _EPSILON)
    for value in values:
        negative = isinstance(value, int | float) and value < 0
        after = ast.UnaryOp(ast.USub(), ast.Constant(-value)) if negative else ast.Constant(value)
        yield node, "constant", after


def _plus(node: ast.expr, step: int) -> ast.expr:
    return ast.BinOp(node, ast.Add() if step > 0 else ast.Sub(), ast.Constant(abs(step)))


def _with(node: ast.expr, **fields: object) -> ast.expr:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


def _parameters(node: ast.FunctionDef | ast.Lambda) -> set[str]:
    return {arg.arg for arg in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


def _is_number(value: ast.expr) -> bool:
    """Whether a returned expression may be a number: a noun, a function, a word or a comparison is none."""
    if isinstance(value, ast.Call):
        called = value.func.attr if isinstance(value.func, ast.Attribute) else getattr(value.func, "id", "")
        return not called[:1].isupper() and called not in (
            "partial",
            "tuple",
            "list",
            "dict",
            "str",
            "isinstance",
            "replace",
        )
    return isinstance(value, ast.BinOp | ast.UnaryOp | ast.Name | ast.Attribute | ast.Subscript | ast.IfExp)


def _is_words(node: ast.AST) -> bool:
    match node:
        case ast.Expr(value=ast.Constant(value=str())):
            return True
        case ast.Assign(targets=[ast.Name(id=name)]):
            return name.startswith("__") or (isinstance(node.value, ast.Call) and _called(node.value) == "TypeVar")
        case ast.Call():
            return _called(node) in ("warn", "static", "field", "register_dataclass")
    return False


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _multiplies(node: ast.GeneratorExp | ast.ListComp) -> bool:
    """Whether it is a * b for a, b in zip(x, y): a product has no order."""
    match node.elt, node.generators[0]:
        case ast.BinOp(op=ast.Mult(), left=left, right=right), ast.comprehension(target=ast.Tuple(elts=names)):
            return [ast.dump(left), ast.dump(right)] == [
                ast.dump(ast.Name(getattr(name, "id", ""), ast.Load())) for name in names
            ]
    return False


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _children(node: ast.AST) -> Iterable[tuple[str, ast.AST]]:
    """The parts of a node in which a fault is a fault: no annotation, no decorator, no type alias."""
    skipped = {"annotation", "returns", "decorator_list", "bases", "type_params", "ctx"}
    for field, value in ast.iter_fields(node):
        if field in skipped:
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield field, child
