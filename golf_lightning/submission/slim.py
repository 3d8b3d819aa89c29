"""Take out of source what running it does not need.

Three passes over syntax trees, before a minifier sees the text: docstrings; what only type checkers read; imports,
functions, classes and constants that no remaining code names. The last is repeated until nothing changes, since each
piece of dead code may have been all that named another.
"""

import ast
import re
from collections import Counter
from collections.abc import Iterable, Iterator

import python_minifier
from typing_extensions import override

from golf_lightning.submission.closure import Sources
from golf_lightning.submission.launcher import COMMANDS

WORD = re.compile(r"\w+")
PLAIN_DECORATORS = ("property", "staticmethod", "classmethod", "contextlib.contextmanager", "torch.no_grad()")
"""Decorators that read nothing but the call."""


def drop_docstrings(tree: ast.Module) -> None:
    """Remove every statement that is only a literal: docstrings of modules, classes, functions and constants."""
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            kept = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
            node.body = kept if kept or isinstance(node, ast.Module) else [ast.Pass()]  # type: ignore[attr-defined]


class TypeStripper(ast.NodeTransformer):
    """Removes what is written for type checkers and what nothing reads when the program runs.

    The command line reads the parameters of constructors and of the methods that its commands are named after, and the
    fields of classes. Triton and torch.library read whole functions, which are decorated. Those stay; return types,
    other parameters, types of variables, ``@override`` and assertions without message that only tell a type go.

    Attributes:
        overrides: names of functions that were marked ``@override``.
    """

    def __init__(self) -> None:
        self.overrides: set[str] = set()
        self._in_class = False

    @override
    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._inside(node, in_class=True)

    @override
    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        decorators = [d for d in node.decorator_list if ast.unparse(d) != "override"]
        if len(decorators) < len(node.decorator_list):
            self.overrides.add(node.name)
        node.decorator_list = decorators
        if any(ast.unparse(decorator) not in PLAIN_DECORATORS for decorator in node.decorator_list):
            return node
        node.returns = None
        if not (self._in_class and node.name in ("__init__", *COMMANDS)):
            for arg in _arguments(node.args):
                arg.annotation = None
        return self._inside(node, in_class=False)

    @override
    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if self._in_class or node.value is None:
            return node
        return ast.copy_location(ast.Assign([node.target], node.value), node)

    @override
    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        is_type = isinstance(node.test, ast.Call) and ast.unparse(node.test.func) == "isinstance"
        is_there = isinstance(node.test, ast.Compare) and ast.unparse(node.test).endswith(" is not None")
        return ast.copy_location(ast.Pass(), node) if (is_type or is_there) and node.msg is None else node

    def _inside(self, node: ast.AST, *, in_class: bool) -> ast.AST:
        outside, self._in_class = self._in_class, in_class
        self.generic_visit(node)
        self._in_class = outside
        return node


def drop_dead_code(sources: Sources, used: Iterable[str] = ()) -> bool:
    """Remove once what no remaining code names; whether there was anything.

    A name counts as used where it is an identifier or an attribute of any module, or a word of any string, since names
    travel as strings too. Only imports, plain functions, classes and assignments of values without calls can go, at the
    top of a module: nothing else is certain to have no effect.

    Args:
        sources: trees without docstrings; changed in place.
        used: names that something outside the sources uses.
    """
    changed = [_drop_imports(tree) for tree in sources.values()]
    words = {id(statement): set(_words(statement)) for tree in sources.values() for statement in tree.body}
    count = Counter(used)
    count.update(word for own in words.values() for word in own)
    for tree in sources.values():
        kept = [
            statement
            for statement in tree.body
            if not (names := _defines(statement))
            or any(count[name] > (name in words[id(statement)]) or name.startswith("__") for name in names)
        ]
        changed.append(len(kept) < len(tree.body))
        tree.body = kept
    return any(changed)


def _drop_imports(tree: ast.Module) -> bool:
    """Remove imports at the top of a module that it does not use, or that only a type checker does."""
    used = {word for statement in tree.body if not _imports_only(statement) for word in _words(statement)}
    kept: list[ast.stmt] = []
    changed = False
    for statement in tree.body:
        if isinstance(statement, ast.If) and ast.unparse(statement.test).endswith("TYPE_CHECKING"):
            changed = True
            continue
        if isinstance(statement, (ast.Import, ast.ImportFrom)) and not _is_future(statement):
            names = [
                alias
                for alias in statement.names
                # "import x as x" is how a module offers another's name
                if alias.asname == alias.name or (alias.asname or alias.name).partition(".")[0] in used
            ]
            changed |= len(names) < len(statement.names)
            statement.names = names
            if not names:
                continue
        kept.append(statement)
    tree.body = kept
    return changed


def _imports_only(statement: ast.stmt) -> bool:
    return isinstance(statement, (ast.Import, ast.ImportFrom))


def _is_future(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.ImportFrom) and statement.module == "__future__"


def _words(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from WORD.findall(node.value)
        elif isinstance(node, ast.alias):
            yield from node.name.split(".")


def _defines(statement: ast.stmt) -> list[str]:
    """Names that a statement defines, if it does nothing else."""
    if isinstance(statement, ast.ClassDef) or (isinstance(statement, ast.FunctionDef) and not statement.decorator_list):
        return [statement.name]
    if not isinstance(statement, (ast.Assign, ast.AnnAssign)) or statement.value is None:
        return []
    if any(isinstance(node, ast.Call) for node in ast.walk(statement.value)):
        return []
    targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return names if len(names) == len(targets) else []


def free_parameters(sources: Sources, overrides: set[str]) -> None:
    """Mark leading parameters that no call names as positional, so that minifying may rename them.

    Left alone are functions that others may call by parameters' names: decorated ones, overriding ones, constructors
    and commands, public methods of classes derived from elsewhere, and functions that are passed on as values.

    Args:
        sources: trees; changed in place.
        overrides: names of functions that others call.
    """
    nodes = [node for tree in sources.values() for node in ast.walk(tree)]
    named = {node.arg for node in nodes if isinstance(node, ast.keyword)}
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    passed_on = {_name(n) for n in nodes if isinstance(n, (ast.Name, ast.Attribute)) and id(n) not in called}
    classes = [node for node in nodes if isinstance(node, ast.ClassDef)]
    foreign = {method for node in classes if node.bases for method in node.body}
    for node in nodes:
        if (
            not isinstance(node, ast.FunctionDef)
            or any(ast.unparse(decorator) not in PLAIN_DECORATORS for decorator in node.decorator_list)
            or node.name in (*overrides, *passed_on, *COMMANDS)
            or node.name.startswith("__")
            or (node in foreign and not node.name.startswith("_"))
        ):
            continue
        while node.args.args and node.args.args[0].arg not in named:
            node.args.posonlyargs.append(node.args.args.pop(0))


def _name(node: ast.Name | ast.Attribute) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr


def minify(tree: ast.Module) -> str:
    """The shortest text of a module that python-minifier may make of it without changing what others see.

    Names of modules, classes, functions, attributes and of parameters that are not positional stay. In a module of
    Triton kernels, whose source Triton compiles, parameters of kernels keep their names inside functions too, since
    Triton knows constants by them, and so do annotated variables; nothing is rewritten there.
    """
    kernels = "triton" in set(_words(tree))
    decorated = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.decorator_list]
    kept = [arg.arg for node in decorated for arg in _arguments(node.args)]
    kept += [node.target.id for node in ast.walk(tree) if _is_annotated_name(node)]  # type: ignore[attr-defined]
    return python_minifier.minify(
        ast.unparse(tree),
        remove_annotations=False,
        hoist_literals=False,
        preserve_locals=sorted(set(kept)) if kernels else None,
        constant_folding=not kernels,
        convert_posargs_to_args=not kernels,
        remove_explicit_return_none=not kernels,
    )


def _arguments(node: ast.arguments) -> list[ast.arg]:
    every = (*node.posonlyargs, *node.args, *node.kwonlyargs, node.vararg, node.kwarg)
    return [arg for arg in every if arg is not None]


def _is_annotated_name(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
