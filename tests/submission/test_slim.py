import ast
import re

import pytest

from golf_lightning.submission.closure import Sources
from golf_lightning.submission.slim import TypeStripper, drop_dead_code, drop_docstrings, free_parameters, minify


def stripped(text: str) -> str:
    return ast.unparse(TypeStripper().visit(ast.parse(text)))


def alive(used: tuple[str, ...] = (), **modules: str) -> dict[str, str]:
    """The modules when nothing more can be dropped."""
    sources: Sources = {name: ast.parse(text) for name, text in modules.items()}
    while drop_dead_code(sources, used):
        pass
    return {name: ast.unparse(tree) for name, tree in sources.items()}


def test_docstrings_go_and_bodies_stay_valid() -> None:
    tree = ast.parse(
        '"""Module."""\nX = 1\n"""Of X."""\nclass A:\n    """Class."""\ndef f():\n    """Doc."""\n    return 1'
    )
    drop_docstrings(tree)
    assert ast.unparse(tree) == "X = 1\n\nclass A:\n    pass\n\ndef f():\n    return 1"


@pytest.mark.parametrize(
    "text",
    [
        "class A:\n    x: int = 1",
        "class A:\n\n    def __init__(self, x: int, *more: str, y: float=1.0):\n        pass",
        "class A:\n\n    def fit(self, ckpt_path: str | None):\n        pass",
        "@triton.jit\ndef f(x: tl.constexpr) -> int:\n    y: tl.constexpr = 1",
        "@torch.library.custom_op('a::b', mutates_args=())\ndef f(x: Tensor) -> Tensor:\n    pass",
        "def f():\n    x: int",
        "def f():\n    assert x == 1, 'a message'",
        "def f():\n    assert x is not None, 'a message'",
        "def f():\n    assert x is not None and x > 1",
    ],
)
def test_annotations_that_something_reads_stay(text: str) -> None:
    assert stripped(text) == text


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("def f(a: int, *b: int, c: int=1, **d: int) -> int:\n    pass", "def f(a, *b, c=1, **d):\n    pass"),
        ("class A:\n\n    def f(self, x: int) -> int:\n        pass", "class A:\n\n    def f(self, x):\n        pass"),
        ("class A:\n\n    def __init__(self) -> None: ...", "class A:\n\n    def __init__(self):\n        ..."),
        ("class A:\n\n    @override\n    def f(self):\n        pass", "class A:\n\n    def f(self):\n        pass"),
        ("class A:\n\n    @property\n    def f(self) -> int:\n        pass",
         "class A:\n\n    @property\n    def f(self):\n        pass"),
        ("x: int = 1", "x = 1"),
        ("def f():\n    assert isinstance(x, A)", "def f():\n    pass"),
        ("def f():\n    assert x.y is not None", "def f():\n    pass"),
        ("class A:\n\n    def f(self):\n        self.x: int = 1", "class A:\n\n    def f(self):\n        self.x = 1"),
        ("class A:\n\n    def f(self):\n\n        def g(x: int):\n            pass",
         "class A:\n\n    def f(self):\n\n        def g(x):\n            pass"),
    ],
)  # fmt: skip
def test_annotations_that_nothing_reads_go(text: str, wanted: str) -> None:
    assert stripped(text) == wanted


def test_what_only_dead_code_names_is_dead_too() -> None:
    found = alive(
        ("start",), a="from b import f\ndef start():\n    return f()", b="X = 1\ndef f(): pass\ndef g():\n    return X"
    )
    assert found["b"] == "def f():\n    pass"


@pytest.mark.parametrize("use", ["print(b.g)", "'g'", "f'{1} or g'", "from b import g as h\nh()"])
def test_a_name_is_used_as_identifier_attribute_word_or_import(use: str) -> None:
    assert "def g" in alive(a=use, b="def g(): pass")["b"]


@pytest.mark.parametrize("text", ["@register\ndef g():\n    pass", "G = register()", "f(1)", "__version__ = '1'"])
def test_what_may_have_an_effect_stays(text: str) -> None:
    assert alive(b=text)["b"] == text


def test_recursion_is_no_use() -> None:
    assert alive(b="def g():\n    g()")["b"] == ""


def test_imports_without_use_go_and_offered_names_stay() -> None:
    text = "from __future__ import annotations\nimport os.path\nimport sys\nfrom a import b as b, c\nprint(os)"
    assert alive(m=text)["m"].splitlines() == [
        "from __future__ import annotations",
        "import os.path",
        "from a import b as b",
        "print(os)",
    ]


def test_imports_for_type_checkers_go() -> None:
    text = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from x import Y\ndef f():\n    pass\nf()"
    assert alive(m=text)["m"] == "def f():\n    pass\nf()"


def test_minifying_keeps_what_callers_name() -> None:
    text = minify(
        ast.parse("def long_name(parameter, *, option):\n    local = parameter + option\n    return local * local")
    )
    namespace: dict[str, object] = {}
    exec(text, namespace)
    assert namespace["long_name"](parameter=2, option=3) == 25  # type: ignore[operator]
    assert "local" not in text


def test_kernels_keep_their_parameters_and_what_is_annotated() -> None:
    text = """import triton

@triton.jit
def kernel(pointer, count, SIZE: tl.constexpr):
    HALF: tl.constexpr = SIZE // 2
    offsets = tl.arange(0, HALF) + 2 * 4
    offsets += count
    return pointer + offsets"""
    short = minify(ast.parse(text))
    assert "offsets" not in short
    renamed = re.search(r"(\w+) *=tl.arange", short)
    assert renamed
    assert ast.dump(ast.parse(short)) == ast.dump(ast.parse(text.replace("offsets", renamed[1])))


def freed(overrides: tuple[str, ...] = (), **modules: str) -> dict[str, str]:
    sources: Sources = {name: ast.parse(text) for name, text in modules.items()}
    free_parameters(sources, set(overrides))
    return {name: ast.unparse(tree) for name, tree in sources.items()}


def test_parameters_that_no_call_names_become_positional() -> None:
    left = freed(
        one="def f(a, b, c, *, d):\n    pass\n\nclass A:\n\n    def m(self, x):\n        pass",
        two="f(1, 2, c=3, d=4)",
    )
    assert left["one"] == ("def f(a, b, /, c, *, d):\n    pass\n\nclass A:\n\n    def m(self, x, /):\n        pass")


@pytest.mark.parametrize(
    "text",
    [
        "@torch.library.custom_op('a::b', mutates_args=())\ndef f(x):\n    pass",
        "class A:\n\n    def __init__(self, x):\n        pass",
        "class A:\n\n    def fit(self, x):\n        pass",
        "class A(pl.Callback):\n\n    def m(self, x):\n        pass",
        "def f(ctx, inputs):\n    pass\nregister(op, setup_context=f)",
        "class A:\n\n    def m(self, x):\n        pass\nregister(A().m)",
    ],
)
def test_parameters_that_others_may_name_stay(text: str) -> None:
    assert freed(a=text) == {"a": text}


def test_overriding_functions_keep_their_parameters() -> None:
    assert freed(("m",), a="def m(x):\n    pass") == {"a": "def m(x):\n    pass"}
    stripper = TypeStripper()
    stripper.visit(ast.parse("class A:\n    @override\n    def m(self): pass\n    def n(self): pass"))
    assert stripper.overrides == {"m"}


def test_private_methods_of_derived_classes_are_ours() -> None:
    assert "def _m(self, x, /)" in freed(a="class A(Base):\n    def _m(self, x): pass")["a"]
