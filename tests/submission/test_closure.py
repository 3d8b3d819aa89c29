import ast
from pathlib import Path

import pytest

from golf_lightning.errors import GolfError
from golf_lightning.submission.closure import carried_packages, class_paths, reach, source_of

FILES = {
    "pack/__init__.py": "",
    "pack/start.py": "import pack.direct\ndef f():\n    from pack import lazy\n    from pack.deep.end import thing\n",
    "pack/direct.py": "import json\nX = {'class_path': 'pack.named.Class', 'other': 'pack.unreached'}\n",
    "pack/lazy.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pack.unreached\n",
    "pack/deep/__init__.py": "import pack.beside\n",
    "pack/deep/end.py": "thing = 1\n",
    "pack/beside.py": "if 1:\n    try:\n        import pack.inside\n    except ImportError:\n        pass\n",
    "pack/inside.py": "",
    "pack/named.py": "class Class: pass\n",
    "pack/unreached.py": "",
}


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_text(text)
    return {"pack": tmp_path}


def test_imports_are_followed_wherever_they_stand(folders: dict[str, Path]) -> None:
    def parse(name: str) -> ast.Module | None:
        path = source_of(name, folders)
        return ast.parse(path.read_text()) if path else None

    found = reach(["pack.start"], parse)
    names = {"beside", "deep", "deep.end", "direct", "inside", "lazy", "named", "start"}
    assert set(found) == {"pack", *(f"pack.{name}" for name in names)}


def test_a_name_inside_a_module_and_a_foreign_module_have_no_source(folders: dict[str, Path]) -> None:
    assert source_of("pack.deep", folders) == folders["pack"] / "pack" / "deep" / "__init__.py"
    assert source_of("pack.deep.end.thing", folders) is None
    assert source_of("json", folders) is None


def test_class_paths_are_found_in_lists_and_dicts() -> None:
    config = {"trainer": {"strategy": {"class_path": "a.B", "init_args": {"x": {"class_path": "c.D"}}}}}
    assert list(class_paths(config | {"callbacks": [{"class_path": "e.F"}, 7, None]})) == ["a.B", "c.D", "e.F"]


def test_own_code_travels_and_what_a_package_installs_does_not(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(folders["pack"]))
    carried = carried_packages(["lightning.pytorch.callbacks.Timer", "pack.named.Class"])
    assert set(carried) == {"golf_lightning", "callbacks", "pack"}
    assert carried["pack"] == folders["pack"]


def test_a_package_that_is_nowhere_is_named() -> None:
    with pytest.raises(GolfError, match="package no_such_package, which the configuration names"):
        carried_packages(["no_such_package.Class"])
