"""The page and the picture: complete, self-contained, and with the right numbers in them."""

import math
import re
import struct
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from run_folders import make_run, result, score, write_json

from golf_lightning.__main__ import main
from golf_lightning.reporting.panels import panels
from golf_lightning.reporting.runs import read_run
from golf_lightning.reporting.seeds import group_runs
from golf_lightning.reporting.style import VARIABLES

ALL = ["loss", "loss_seconds", "speed", "lr", "momentum", "grad_norm", "scores", "gain", "ledger", "bytes"]


class Page(HTMLParser):
    """What a browser would fetch, the text, and the pictures' keys."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.figures: list[str] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag not in ("meta", "link", "br"):
            self.open.append(tag)
        self.fetched += [v for k, v in values.items() if k in ("src", "href", "srcset") and v and not v.startswith("#")]
        if tag == "link":
            self.fetched.append("link")
        if tag == "figure":
            self.figures.append(str(values["id"]))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(*arguments: object) -> int:
    return main(["report", *(str(argument) for argument in arguments)])


def page(path: Path) -> Page:
    return Page(path.read_text())


def make_runs(folder: Path) -> list[Path]:
    """Three seeds of one configuration and two of another."""
    ours = [make_run(folder, f"golf-{seed}", 2.76 + seed / 1000, seed=seed) for seed in range(3)]
    theirs = [make_run(folder, f"slow-{seed}", 2.78 + seed / 1000, seed=seed, lr=0.01) for seed in range(2)]
    return [*ours, *theirs]


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    return make_runs(tmp_path)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs with their report; tests only read it."""
    folder = tmp_path_factory.mktemp("reported")
    assert report(*make_runs(folder), "--against", "slow") == 0
    return folder


def test_a_page_holds_every_panel_and_fetches_nothing(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    found = Page(text)
    assert found.figures == ALL
    assert found.fetched == []
    assert found.open == []
    assert "<script" not in text and "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_pictures_are_well_formed_and_follow_the_readers_colours(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    pictures = re.findall(r"<svg viewBox=\"[^\"]*\" role=.*?</svg>", text, re.DOTALL)
    assert len(pictures) == len(ALL)
    names = []
    for picture in pictures:
        root = ElementTree.fromstring(picture.replace("xlink:", ""))
        names += [node.attrib["id"] for node in root.iter() if "id" in node.attrib]
        assert not [shade for shade in VARIABLES if shade in picture]
    assert len(names) == len(set(names))
    for variable in VARIABLES.values():
        assert text.count(f"{variable}:") == 2  # light and dark


def test_the_page_has_the_numbers(reported: Path) -> None:
    text = page(reported / "report.html").text
    mean = 2.761 / math.log(2) / 3.73
    assert f"{mean:.4f}" in text
    assert "golf: after TTT 3" in text
    assert "0.01950 nats" in text
    assert "6,973,495" in text


def test_what_holds_for_several_runs_is_said_once(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    for folder in runs[:2]:
        (folder / "documents.csv").unlink()
    assert report(*runs) == 0
    assert "golf-0, golf-1: No documents.csv" in capsys.readouterr().out
    assert page(tmp_path / "report.html").text.count("No documents.csv") == 1


def test_against_a_number(runs: list[Path], tmp_path: Path, capsys: Any) -> None:
    assert report(*runs, "--against", "1.0800") == 0
    assert "against 1.08 bits per byte" in page(tmp_path / "report.html").text
    assert "golf, after TTT: Clears the contest's bar" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("against", "sentence"),
    [("fast", "one of the groups of these runs: golf, slow"), ("nan", "above 0"), ("-1", "above 0"), ("0", "above 0")],
)
def test_nonsense_to_compare_with(runs: list[Path], capsys: Any, against: str, sentence: str) -> None:
    assert report(*runs, f"--against={against}") == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--out", "page.png"), "page.png, but the page is HTML; end it in .html"),
        (("--out", "page.SVG"), "page.SVG, but the page is HTML; end it in .html"),
        (("--out", "page.html", "--png", "page.html"), "page.html, but the picture is PNG; end it in .png"),
        (("--out", "page.html", "--png", "page.svg"), "page.svg, but the picture is PNG; end it in .png"),
        (("--out", "."), "--out . is a folder"),
    ],
)
def test_page_and_picture_are_two_files_of_the_right_kind(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, options: Any, sentence: str
) -> None:
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert report(*runs, *options) == 2
    error = capsys.readouterr().err
    assert sentence in error and error.count("\n") == 1
    assert not list((tmp_path / "empty").iterdir())


def test_a_group_has_nothing_but_itself_to_be_compared_with(runs: list[Path], capsys: Any) -> None:
    assert report(*runs[:3], "--against", "golf-1") == 2
    assert "nothing to compare" in capsys.readouterr().err


def test_the_picture_is_a_png_of_readable_size(reported: Path) -> None:
    data = (reported / "report.png").read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 1200 and height >= 1200


def test_one_run_has_its_report_in_its_folder(runs: list[Path]) -> None:
    assert report(runs[0]) == 0
    assert {"report.html", "report.png"} <= {path.name for path in runs[0].iterdir()}


def test_an_earlier_report_among_the_folders_is_passed_over(reported: Path, tmp_path: Path, capsys: Any) -> None:
    assert report(*sorted(reported.iterdir()), "--out", tmp_path / "report.html") == 0
    assert "golf: after TTT" in capsys.readouterr().out
    assert report(reported / "report.html") == 2
    assert "give the folders of runs" in capsys.readouterr().err


def test_equal_runs_give_equal_pages_wherever_they_are_written(reported: Path, tmp_path: Path) -> None:
    again = ("--against", "slow", "--out", tmp_path / "a.html", "--png", tmp_path / "b.png")
    assert report(*make_runs(tmp_path), *again) == 0
    assert (tmp_path / "a.html").read_bytes() == (reported / "report.html").read_bytes()
    assert (tmp_path / "b.png").read_bytes() == (reported / "report.png").read_bytes()


def test_names_cannot_break_the_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "<b>x & y")
    assert report(folder, "--out", tmp_path / "report.html") == 0
    text = (tmp_path / "report.html").read_text()
    assert "<b>x" not in text
    assert "&lt;b&gt;x &amp; y" in text


def test_many_runs_with_long_names_have_a_page(tmp_path: Path, capsys: Any) -> None:
    name = "a-rather-long-name-of-a-configuration"
    folders = [make_run(tmp_path, f"{name}-{lr}-{seed}", seed=seed, lr=lr) for lr in range(3) for seed in range(3)]
    assert report(*folders, "--against", f"{name}-2") == 0
    output = capsys.readouterr().out
    assert "3 configurations" in (tmp_path / "report.html").read_text()
    assert output.count("contest's bar") == 2  # one verdict for each of the two other groups
    assert [label.get_text() for label in drawn(folders[0], "ledger").get_yticklabels()] == ["a-rather…ation-0-0"]


def only_trained(folder: Path) -> None:
    (folder / "documents.csv").unlink()
    whole = result({"before_quantization": score(3.0)})
    write_json(folder / "result.json", {key: whole[key] for key in ("run", "train", "scores", "ledger")})


def killed(folder: Path) -> None:
    (folder / "documents.csv").unlink()
    (folder / "result.json").unlink()


def only_scored(folder: Path) -> None:
    (folder / "metrics" / "version_0" / "metrics.csv").unlink()
    (folder / "config.yaml").unlink()
    (folder / "environment.json").unlink()


PARTS = {
    "only trained": (only_trained, [*ALL[:7], "ledger"]),
    "killed": (killed, ALL[:6]),
    "only scored": (only_scored, ALL[6:]),
}


@pytest.mark.parametrize(("damage", "figures"), PARTS.values(), ids=PARTS)
@pytest.mark.parametrize("beside", [False, True])
def test_parts_of_runs_are_shown_as_far_as_they_go(
    tmp_path: Path, damage: Any, figures: list[str], beside: bool
) -> None:
    folders = [make_run(tmp_path, "part", seed=1)]
    damage(folders[0])
    if beside:
        folders.append(make_run(tmp_path, "whole", seed=2))
    assert report(*folders, "--out", tmp_path / "report.html") == 0
    found = page(tmp_path / "report.html")
    assert found.figures == (ALL if beside else figures)
    assert "What to know first" in found.text


def drawn(folder: Path, key: str) -> Any:
    (panel,) = [one for one in panels(group_runs([read_run(folder)])) if one.key == key]
    axes = Figure().subplots()
    panel.draw(axes)
    return axes


def test_the_gain_by_length_pools_bytes(tmp_path: Path) -> None:
    axes = drawn(make_run(tmp_path, "golf"), "gain")
    # Documents of 10 and 60, of 65, and of 400 and 465 targets, 4 bytes each; 0.01 nats a target gained.
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [0.01 / math.log(2) / 4] * 3)
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels == ["≤ 64\n(2)", "≤ 128\n(1)", "≤ 512\n(2)"]


def test_the_switch_to_recurrence_is_marked_at_its_step(tmp_path: Path) -> None:
    axes = drawn(make_run(tmp_path, "golf"), "speed")
    assert [list(line.get_xdata()) for line in axes.lines[1:]] == [[14, 14]]


def test_bars_add_up(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "golf")
    for key, total in (("ledger", 57.0), ("bytes", 9_026_505.0)):
        assert sum(bar.get_width() for bar in drawn(folder, key).patches) == pytest.approx(total)


def test_the_limit_is_marked_where_it_is_near(tmp_path: Path) -> None:
    assert [list(line.get_xdata()) for line in drawn(make_run(tmp_path, "golf"), "bytes").lines] == [[16e6, 16e6]]


def test_the_first_steps_do_not_flatten_the_curve(tmp_path: Path) -> None:
    axes = drawn(make_run(tmp_path, "golf"), "loss")
    losses = axes.lines[0].get_ydata()
    assert losses[1] <= axes.get_ylim()[1] < losses[0]
