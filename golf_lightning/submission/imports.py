"""Leave out the imports at the top of modules that whoever unpacks them can put back.

A name means the same in every module that imports it, so that its use tells the import: what one module alone defines
comes from there, and a table tells the rest; see :func:`golf_lightning.submission.launcher.known_imports`. Where that
would give a module another set of imports than it had, the lines stay.
"""

import ast
from collections.abc import Callable

from golf_lightning.submission.closure import Sources
from golf_lightning.submission.launcher import imported_name, known_imports, split_future, used_names


def share_imports(sources: Sources, to_text: Callable[[ast.Module], str]) -> tuple[str, dict[str, str]]:
    """The table, and the text of every module without the imports that can be put back.

    Args:
        sources: trees by module name; changed in place.
        to_text: makes text of a tree; names that the tree does not define must stay.
    """
    taken = {module: _take_imports(tree) for module, tree in sources.items()}
    texts = {module: to_text(tree) for module, tree in sources.items()}
    used = {module: used_names(text) for module, text in texts.items()}
    defined = known_imports({f"{module}.py": text for module, text in texts.items()}, "")
    imports = {name: {line} for name, line in defined.items() if line}
    for line in {line for lines in taken.values() for line in lines}:
        imports.setdefault(imported_name(line), set()).add(line)
    table, not_imports, left_out = [], [], set()
    for name, (line, *others) in sorted(imports.items()):
        users = {module for module in sources if name in used[module] and not line.startswith(f"from {module} ")}
        if not others and users == {module for module in sources if line in taken[module]}:
            left_out.add(line)
            if not defined.get(name):
                table.append(line)
        elif defined.get(name):
            not_imports.append(name)
    for module in sources:
        if rest := [line for line in taken[module] if line not in left_out]:
            future, text = split_future(texts[module])
            texts[module] = future + "\n".join(_joined(rest)) + "\n" + text
    return "\n".join([",".join(not_imports), *_joined(table)]), texts


def _take_imports(tree: ast.Module) -> list[str]:
    """Remove imports at the top of a module; one line for each imported name, in order."""
    lines = []
    kept: list[ast.stmt] = []
    for statement in tree.body:
        if isinstance(statement, ast.Import):
            lines += [f"import {ast.unparse(alias)}" for alias in statement.names]
        elif isinstance(statement, ast.ImportFrom) and statement.module != "__future__":
            lines += [f"from {statement.module} import {ast.unparse(alias)}" for alias in statement.names]
        else:
            kept.append(statement)
    tree.body = kept
    return lines


def _joined(lines: list[str]) -> list[str]:
    """Lines of one name each, joined where they import from the same module."""
    groups: dict[str, list[str]] = {}
    for line in sorted(lines):
        start, _, name = line.rpartition("import ")
        groups.setdefault(start, []).append(name)
    return [f"{start}import {','.join(names)}" for start, names in groups.items()]
