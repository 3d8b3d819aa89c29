import ast
import contextlib
import functools
import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import quick_coder
import yaml
from hypothesis import example, given
from hypothesis import strategies as st
from small_run import golf, make_data, write_recipe

from golf_lightning.__main__ import main
from golf_lightning.compression.budget import MOST_CODE_BYTES
from golf_lightning.errors import GolfError
from golf_lightning.submission import bundle as bundler
from golf_lightning.submission import launcher, sizing, squeeze
from golf_lightning.submission.bundle import Program, _literal, bundle
from golf_lightning.submission.closure import class_paths
from golf_lightning.submission.parts import shares
from golf_lightning.submission.slim import minify

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "configs" / "demo.yaml"
IMPORT_NAMES = {"PyYAML": "yaml", "jsonargparse[signatures]": "jsonargparse"}
OPTIONAL = {"triton", "flash_attn", "cutlass", "quack"}


def payload_of(program: bytes) -> bytes:
    values = [s.value for s in ast.parse(program).body if isinstance(s, ast.Assign) and s.targets[0].id == "DATA"]  # type: ignore[attr-defined]
    return ast.literal_eval(values[0]).encode("latin-1")


@pytest.fixture(scope="module", autouse=True)
def quick() -> Iterator[None]:
    """Programs of this file's tests are packed with zlib, and a module that stays the same is minified once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundler, "squeeze", quick_coder)
        patch.setattr(bundler, "packed", quick_coder.packed)
        patch.setattr(launcher, "unpack_text", quick_coder.unpack_text)
        patch.setattr(sizing, "Sizing", quick_coder.SizingHere)
        minified = functools.lru_cache(None)(lambda text: minify(ast.parse(text)))
        patch.setattr(bundler, "minify", lambda tree: minified(ast.unparse(tree)))
        yield


@pytest.fixture(scope="module")
def program(quick: None) -> bytes:
    """The demo's bundle."""
    return Program(DEMO.read_text()).read()


@pytest.fixture(scope="module")
def unpacked(program: bytes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The files in it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield launcher.unpack(payload_of(program), b"")


@pytest.fixture(scope="module")
def told(quick: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The demo's bundle as the command makes it from the beginning, and what the command prints."""
    out, printed = tmp_path_factory.mktemp("told") / "program.py", io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed):
        patch.setattr(bundler, "minify", minify)
        assert main(["bundle", "--config", str(DEMO), "--out", str(out), "--parts"]) == 0
    return out, printed.getvalue().splitlines()


@given(st.binary(max_size=400))
@example(b'"""')
@example(b'a""')
@example(b'\0007\0\r\n\\\r""""\x1a\x0c\x85\xff')
def test_any_bytes_survive_as_a_literal(data: bytes) -> None:
    program = f"# coding: latin-1\nDATA={_literal(data)}\n".encode("latin-1")
    assert payload_of(program) == data


@pytest.mark.slow
def test_a_shipped_recipe_fits_the_limit_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundler, "squeeze", squeeze)
    # The coder, but without making sure that what it made can be unpacked, which takes as long again.
    monkeypatch.setattr(bundler, "packed", squeeze.pack)
    report = bundle(ROOT / "configs" / "golf.yaml", tmp_path / "train_gpt.py")
    assert report.bytes == (tmp_path / "train_gpt.py").stat().st_size <= MOST_CODE_BYTES


def test_the_same_sources_and_configuration_give_the_same_bytes(program: bytes, told: tuple[Path, list[str]]) -> None:
    assert told[0].read_bytes() == program


def test_only_listed_packages_are_imported(unpacked: Path) -> None:
    setup = ast.parse((ROOT / "setup.py").read_text())
    listed = next(k.value for k in ast.walk(setup) if isinstance(k, ast.keyword) and k.arg == "install_requires")
    requirements = {text.partition(">")[0] for text in ast.literal_eval(listed)}
    allowed = {IMPORT_NAMES.get(name, name) for name in requirements} | {"typing_extensions"}
    found = set()
    for path in unpacked.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).partition(".")[0])
    foreign = found - set(sys.stdlib_module_names) - {"golf_lightning", "callbacks"}
    assert {"torch", "lightning", "yaml"} - {"yaml"} < foreign <= allowed | OPTIONAL
    assert not foreign & {"python_minifier", "pyarrow", "huggingface_hub", "matplotlib"}


def test_what_prepares_data_and_bundles_stays_at_home(unpacked: Path) -> None:
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "golf_lightning").rglob("*.py")}
    left_out = here - {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*.py")}
    assert {f"golf_lightning/data/{name}.py" for name in ("commands", "prepare", "encode", "hub", "readers")} < left_out
    assert {f"golf_lightning/submission/{name}.py" for name in ("bundle", "closure", "slim")} < left_out


def kernels_of(folder: Path) -> dict[str, str]:
    """Every Triton kernel as a syntax tree without docstring, its variables numbered in order of appearance."""
    found = {}
    for path in sorted((folder / "golf_lightning").rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and "triton.jit" in map(ast.unparse, node.decorator_list):
                node.body = [
                    s for s in node.body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))
                ]
                names = [inner for inner in ast.walk(node) if isinstance(inner, ast.Name)]
                parameters = {arg.arg for arg in ast.walk(node) if isinstance(arg, ast.arg)}
                stored = dict.fromkeys(n.id for n in names if isinstance(n.ctx, ast.Store) and n.id not in parameters)
                numbers = {name: f"variable {number}" for number, name in enumerate(stored)}
                for name in names:
                    name.id = numbers.get(name.id, name.id)
                found[f"{path.name}:{node.name}"] = ast.dump(node)
    return found


def test_triton_reads_the_kernels_as_they_were_written_but_for_names_of_variables(unpacked: Path) -> None:
    ours, theirs = kernels_of(ROOT), kernels_of(unpacked)
    assert len(theirs) > 5
    assert theirs == {name: ours[name] for name in theirs}


@pytest.fixture(scope="module")
def own(quick: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked program of a configuration with a class of its own and settings that may not travel."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "mine.py").write_text(
        "import lightning.pytorch as pl\nfrom golf_lightning.data.encode import batches\n"
        "class Mine(pl.Callback): pass\nclass Not: pass\n"
    )
    export = {"budget": {"limit_bytes": 15_000_000, "code_bytes": 5}, "calibration_batches": 64}
    config = {
        "ckpt_path": "x.ckpt",
        "data": {"folder": "prepared"},
        "trainer": {"callbacks": [{"class_path": "mine.Mine"}]},
        "model": {"export": export},
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setitem(sys.modules, "mine", None)
        del sys.modules["mine"]  # and so again afterwards
        made = Program(yaml.safe_dump(config))
        assert "mine" in made.modules
        return launcher.unpack(payload_of(made.read()), b"")


def test_own_classes_of_the_configuration_travel(own: Path) -> None:
    text = (own / "mine.py").read_text()
    assert "class Mine" in text
    assert "Not" not in text and "encode" not in text


def test_what_belongs_to_one_run_and_defaults_do_not_travel(own: Path) -> None:
    assert json.loads((own / "config.json").read_text()) == {
        "data": {"folder": "prepared"},
        "trainer": {"callbacks": [{"class_path": "mine.Mine"}]},
        "model": {"export": {"budget": {"limit_bytes": 15_000_000}}},
    }


@pytest.mark.parametrize(
    "text, sentence", [(None, "Cannot read .*run's config.yaml"), ("a: [", "is not YAML"), ("- 1", "not a mapping")]
)
def test_a_bad_configuration_is_one_sentence_and_writes_nothing(
    tmp_path: Path, text: str | None, sentence: str
) -> None:
    if text is not None:
        (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(GolfError, match=sentence):
        bundle(tmp_path / "config.yaml", tmp_path / "train_gpt.py")
    assert not (tmp_path / "train_gpt.py").exists()


def test_the_command_tells_bytes_and_modules(told: tuple[Path, list[str]]) -> None:
    out, lines = told
    assert lines[0].startswith(f"{out}: {out.stat().st_size:,} bytes, ")


def test_the_command_tells_what_each_file_takes(told: tuple[Path, list[str]]) -> None:
    out, printed = told
    lines = [line.split() for line in printed[1:]]
    sizes = {path: int(size.replace(",", "")) for size, path in lines}
    assert "golf_lightning/model/gpt.py" in sizes
    assert sum(sizes.values()) == pytest.approx(out.stat().st_size, abs=len(sizes))
    assert list(sizes.values()) == sorted(sizes.values(), reverse=True)


def test_more_text_takes_more_bytes() -> None:
    files = {"a": "def f(x): return x + 1", "b": "".join(chr(97 + n * n % 26) for n in range(3000)), "c": ""}
    assert list(shares(files, 1000)) == ["b", "a", "c"]


def scores(path: Path) -> dict[str, float]:
    return {name: score["nats"] for name, score in json.loads(path.read_text())["scores"].items()}


@pytest.mark.slow
def test_the_bundled_demo_runs_alone_and_gives_the_sums_of_the_package(tmp_path: Path) -> None:
    data = make_data(tmp_path / "prepared")
    small = {
        "clock": {"budget_s": None},
        "trainer": {"max_steps": 3},
        "data": {"folder": str(data)},
        "model": {
            "gpt": {
                "vocab_size": 320,
                "width": 32,
                "heads": 2,
                "kv_heads": 1,
                "head_dim": 16,
                "mlp_width": 64,
                "rope_dims": 8,
            },
            "export": {"calibration_batches": 2, "budget": {"code_bytes": None}},
            "ttt": {"max_documents": 3},
        },
    }
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(small))
    options = ["--config", DEMO, "--config", tmp_path / "small.yaml"]
    assert golf("fit", *options, "--run.root", tmp_path / "package") == 0
    ours = tmp_path / "package" / "demo"
    empty = tmp_path / "empty"
    report = bundle(ours / "config.yaml", empty / "train_gpt.py")
    result = json.loads((ours / "result.json").read_text())
    assert result["artifact"]["code_bytes"] == report.bytes

    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}

    def run(*arguments: object) -> None:
        # Isolated: neither this checkout nor anything else beside the installed packages is on the path.
        command = [sys.executable, "-I", "train_gpt.py", *map(str, arguments), "--run.root", "runs"]
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, timeout=200)
        assert done.returncode == 0, done.stderr

    run()
    theirs = empty / "runs" / "demo"
    assert scores(theirs / "result.json") == scores(ours / "result.json")
    assert (theirs / "artifact.golf").read_bytes() == (ours / "artifact.golf").read_bytes()
    assert json.loads((theirs / "result.json").read_text())["artifact"]["code_bytes"] == report.bytes
    run("test", "--ckpt_path", theirs / "artifact.golf")
    assert scores(theirs / "test.json") == {name: scores(ours / "result.json")[name] for name in ("ttt_lr0", "ttt")}
    unpacked = next((tmp_path / ".cache" / "golf_lightning").iterdir())
    assert list(unpacked.rglob("module.*.pyc")), "the modules that ran are the unpacked ones"

    mine, package = (yaml.safe_load((folder / "config.yaml").read_text()) for folder in (theirs, ours))
    for config in (mine, package):
        config["run"].pop("root")
        config["model"]["export"]["budget"].pop("code_bytes")
    assert mine == package
    assert list(class_paths(mine)) == ["golf_lightning.optim.strategy.MuonStrategy"]
    assert bundle(theirs / "config.yaml", tmp_path / "again.py").modules == report.modules


@pytest.mark.slow
def test_the_bundle_starts_its_other_ranks_itself(tmp_path: Path) -> None:
    recipe = write_recipe(
        tmp_path,
        make_data(tmp_path / "prepared"),
        trainer={"devices": 2},
        data={"val_tokens": 48},
        ttt={"enabled": False},
    )
    bundle(recipe, tmp_path / "train_gpt.py")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "train_gpt.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "runs" / "small" / "result.json").read_text())["train"]["tokens"] == 2 * 6 * 128
