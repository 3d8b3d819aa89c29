"""Which modules a program needs: what its entry imports, from source to source, without running any of it."""

import ast
import importlib.util
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from golf_lightning.errors import GolfError

OWN_PACKAGES = ("golf_lightning", "callbacks")

Sources = dict[str, ast.Module]
"""Syntax trees by module name; a package goes by its own name."""


def class_paths(value: Any) -> Iterator[str]:
    """Every ``class_path`` in a nested configuration of dicts and lists."""
    if isinstance(value, dict):
        if isinstance(path := value.get("class_path"), str):
            yield path
        for inner in value.values():
            yield from class_paths(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from class_paths(inner)


def carried_packages(paths: Iterable[str]) -> dict[str, Path]:
    """Top-level packages whose sources must travel: this project's, and those of class paths that no package installs.

    Args:
        paths: the configuration's class paths.

    Returns:
        The folder that holds each package or module, by name.

    Raises:
        GolfError: a package cannot be found.
    """
    folders: dict[str, Path] = {}
    installed: set[str] | None = None
    for name in dict.fromkeys([*OWN_PACKAGES, *(path.partition(".")[0] for path in paths)]):
        if name not in OWN_PACKAGES:
            installed = installed if installed is not None else set(metadata.packages_distributions())
            if name in installed:
                continue
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise GolfError(f"The package {name}, which the configuration names, has no source here; install it.")
        origin = Path(spec.origin)
        folders[name] = origin.parent.parent if origin.name == "__init__.py" else origin.parent
    return folders


def source_of(module: str, folders: dict[str, Path]) -> Path | None:
    """The source file of a module of the carried packages; ``None`` for another module, or a name inside a module."""
    folder = folders.get(module.partition(".")[0])
    if folder is None:
        return None
    path = folder.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.is_file()), None)


def reach(roots: Iterable[str], parse: Callable[[str], ast.Module | None]) -> Sources:
    """Follow imports from ``roots``, those inside functions too.

    A ``"class_path"`` key of a dict in the source counts as an import of its value's module; imports for type checkers
    alone do not count.

    Args:
        roots: module names.
        parse: the tree of a module, or ``None`` where it is not to be followed.
    """
    found: Sources = {}
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or (tree := parse(name)) is None:
            continue
        found[name] = tree
        waiting += [name.rpartition(".")[0], *_imports(tree)]
    return dict(sorted(found.items()))


def _imports(node: ast.AST) -> Iterator[str]:
    """Names of modules that the code under ``node`` may import; some are names inside a module."""
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
        children: Iterable[ast.AST] = node.orelse
    else:
        children = ast.iter_child_nodes(node)
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        assert node.module is not None and not node.level, "this project imports by full names"
        yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and key.value == "class_path" and isinstance(value, ast.Constant):
                yield str(value.value).rpartition(".")[0]
    for child in children:
        yield from _imports(child)
