import ast

import pytest

from golf_lightning.submission.imports import share_imports
from golf_lightning.submission.launcher import known_imports, with_imports


def round_trip(**modules: str) -> tuple[dict[str, str], dict[str, str], str]:
    """Texts as they travel, texts as they are unpacked, and the table, of modules named without folder."""
    table, texts = share_imports({name: ast.parse(text) for name, text in modules.items()}, ast.unparse)
    imports = known_imports({f"{name}.py": text for name, text in texts.items()}, table)
    return texts, {name: with_imports(f"{name}.py", text, imports) for name, text in texts.items()}, table


def imports_of(text: str) -> set[str]:
    lines = set()
    for node in ast.parse(text).body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            start = f"from {node.module} import " if isinstance(node, ast.ImportFrom) else "import "
            lines |= {start + ast.unparse(alias) for alias in node.names}
    return lines


def test_imports_leave_and_come_back() -> None:
    modules = {
        "one": "import math\nfrom three import far\nX = 1\ndef f(): return math.pi + far",
        "two": "from one import X, f\nimport torch.distributed as dist\nprint(X, f, dist)",
        "three": "far = 2",
    }
    texts, back, table = round_trip(**modules)
    assert not any(imports_of(text) for text in texts.values())
    assert table == "\nimport math,torch.distributed as dist"
    assert {name: imports_of(text) for name, text in back.items()} == {
        name: imports_of(text) for name, text in modules.items()
    }


@pytest.mark.parametrize(
    "modules",
    [
        # a local variable of another module's name
        {"one": "from two import plan\nplan()", "two": "def plan(): pass", "three": "def g(plan): return plan"},
        # two modules define it
        {"one": "from two import f\nf()", "two": "def f(): pass", "three": "def f(): pass"},
        # one name for two things
        {"one": "import torch\ntorch", "two": "import torch.fx\ntorch"},
        # offered, not used
        {"one": "from two import f as f", "two": "def f(): pass", "three": "from one import f\nf()"},
        # after the future
        {"one": "from __future__ import annotations\nfrom two import f\nf()", "two": "def f(): pass\nf = f"},
        # unused elsewhere, and in a function
        {"one": "def g():\n    import heavy\n    return heavy", "two": "import heavy\nheavy"},
    ],
)
def test_every_module_gets_exactly_its_own_imports(modules: dict[str, str]) -> None:
    _, back, _ = round_trip(**modules)
    assert {name: imports_of(text) for name, text in back.items()} == {
        name: imports_of(text) for name, text in modules.items()
    }
    for text in back.values():
        compile(text, "module", "exec")
