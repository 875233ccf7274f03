"""The report: the evaluation's numbers, one self-contained page, pictures that decode."""

from __future__ import annotations

import base64
import io
import json
import sys
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.evaluation.charts import EMPTY, draw_pictures, short, side_by_side
from quickdraw_dist.evaluation.html import printable
from quickdraw_dist.evaluation.metrics import Evaluation, Mistake
from quickdraw_dist.evaluation.report import write_report
from tests.support.pages import Page

DETAILS = {"Checkpoint": "runs/a & b/step-000000010", "Hardware": "<8 × GPU>"}
ODD_NAMES = (
    "$\\frac$ or 5",  # no valid mathtext: matplotlib raises when it reads it as such
    "<script>alert(1)</script>",
    "\"double\" & 'single'",
    "Ünïcødé 日本 🎨 שלום",
    "line\nbreak\x00nul\ud800half",
)


def fake(classes: int, mistakes: int = 3, names: tuple[str, ...] = ()) -> Evaluation:
    rng = np.random.default_rng(classes)
    confusion = rng.integers(0, 4, (classes, classes))
    confusion[np.arange(classes), np.arange(classes)] = rng.integers(40, 90, classes)
    wrong = confusion.sum(axis=1) - np.diag(confusion)
    return Evaluation(
        split="val",
        classes=names or tuple(f"class {label}" for label in range(classes)),
        confusion=confusion,
        top3_per_class=np.diag(confusion) + wrong // 2,
        map3=0.75,
        loss=0.5,
        mistakes=tuple(
            Mistake(rng.integers(0, 256, (28, 28), dtype=np.uint8), 1, 0, 0.9, row)
            for row in range(mistakes)
        ),
    )


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> tuple[Evaluation, Path]:
    """A report about unusual names, with a class that has no drawings (the third)."""
    evaluation = fake(5, names=ODD_NAMES)
    evaluation.confusion[2] = 0
    evaluation.top3_per_class[2] = 0
    folder = tmp_path_factory.mktemp("report") / "made" / "here"
    title = "Résumé </title><b>of 'it'"
    assert write_report(evaluation, folder, title=title, details=DETAILS) == folder / "index.html"
    return evaluation, folder


def test_json_holds_the_metrics_of_the_evaluation(odd: tuple[Evaluation, Path]) -> None:
    evaluation, folder = odd
    numbers = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
    assert {key: numbers[key] for key in evaluation.metrics()} == evaluation.metrics()
    assert [row["class"] for row in numbers["per_class"]] == list(ODD_NAMES)
    for label, row in enumerate(numbers["per_class"]):
        counts = evaluation.confusion[label].copy()
        assert row["drawings"] == counts.sum()
        if label == 2:
            assert row["top1"] is row["top3"] is row["most_confused_with"] is None
            assert row["most_confused_drawings"] == 0
            continue
        assert row["top1"] == pytest.approx(counts[label] / counts.sum(), abs=1e-6)
        top3 = evaluation.top3_per_class[label] / counts.sum()
        assert row["top3"] == pytest.approx(top3, abs=1e-6)
        counts[label] = 0
        assert row["most_confused_drawings"] == counts.max()
        assert counts[ODD_NAMES.index(row["most_confused_with"])] == counts.max()
    pairs = numbers["confused_pairs"]
    assert [pair["drawings"] for pair in pairs] == [n for _, _, n in evaluation.confused_pairs(30)]
    for pair in pairs:
        true, guess = ODD_NAMES.index(pair["true"]), ODD_NAMES.index(pair["predicted"])
        assert pair["drawings"] == evaluation.confusion[true, guess] > 0
        assert pair["share"] == pytest.approx(
            pair["drawings"] / evaluation.confusion[true].sum(), abs=1e-6
        )


def test_page_is_self_contained(odd: tuple[Evaluation, Path]) -> None:
    _, folder = odd
    page = Page(folder / "index.html")
    assert page.every("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.every("meta"))
    for _, attributes in page.tags:
        for name in ("src", "href", "srcset", "action", "data"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "url(" not in page.text("style")
    assert "import" not in page.text("style") + page.text("script")


def test_pictures_are_embedded_and_described(odd: tuple[Evaluation, Path]) -> None:
    _, folder = odd
    images = Page(folder / "index.html").every("img")
    embedded = [base64.b64decode((image["src"] or "").split(",")[1]) for image in images]
    names = ("pairs", "mistakes", "confusion", "classes")
    assert embedded == [(folder / f"{name}.png").read_bytes() for name in names]
    for image, data in zip(images, embedded, strict=True):
        assert image["alt"]
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            size = (int(image["width"] or 0), int(image["height"] or 0))
            assert size == (picture.width // 2, picture.height // 2)
            assert set(picture.info) <= {"dpi"}  # no version, no time
            assert len(picture.convert("RGB").getcolors(1 << 24) or ()) > 3


def test_names_title_and_details_are_text(odd: tuple[Evaluation, Path]) -> None:
    _, folder = odd
    page = Page(folder / "index.html")
    assert len(page.every("script")) == len(page.every("title")) == 1
    assert page.text("title") == page.text("h1") == "Résumé </title><b>of 'it'"
    assert [row[0][1] for row in page.rows[: len(DETAILS)]] == list(DETAILS.values())
    raw = (folder / "index.html").read_bytes()
    assert b"<script>alert" not in raw
    assert b"\x00" not in raw


def test_table_has_every_class_with_values_to_sort_by(odd: tuple[Evaluation, Path]) -> None:
    evaluation, folder = odd
    rows = Page(folder / "index.html").rows[-5:]
    shown = [printable(name) for name in ODD_NAMES]
    assert [row[0] for row in rows] == [(name, name) for name in shown]
    assert [row[1][0] for row in rows] == [str(n) for n in evaluation.support]
    assert rows[2][2:5] == [("", "–")] * 3
    value, text = rows[0][2]
    accuracy = float(evaluation.class_accuracy[0])
    assert float(value or "nan") == pytest.approx(accuracy, abs=1e-6)
    assert text == f"{100 * accuracy:.2f}%"


def test_tiles_show_the_headline(odd: tuple[Evaluation, Path]) -> None:
    evaluation, folder = odd
    tiles = Page(folder / "index.html").texts["dd"]
    assert f"{100 * evaluation.top1:.2f}%" in tiles
    assert f"{100 * evaluation.top3:.2f}%" in tiles
    assert {"75.00%", "0.5000", f"{evaluation.drawings:,}"} <= set(tiles)


def test_equal_evaluations_give_equal_bytes_whatever_the_style(
    odd: tuple[Evaluation, Path], tmp_path: Path
) -> None:
    evaluation, folder = odd
    copy = replace(evaluation, confusion=evaluation.confusion.copy())
    with matplotlib.rc_context({"axes.facecolor": "red", "font.size": 20, "savefig.dpi": 50}):
        before = dict(matplotlib.rcParams)
        write_report(copy, tmp_path, title="Résumé </title><b>of 'it'", details=DETAILS)
        assert dict(matplotlib.rcParams) == before
    names = sorted(path.name for path in folder.iterdir())
    assert len(names) == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    for name in names:
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes(), name


def test_class_without_drawings_is_an_empty_row(odd: tuple[Evaluation, Path]) -> None:
    _, folder = odd
    with Image.open(folder / "confusion.png") as picture:
        pixels = np.asarray(picture.convert("RGB"))
    grey = tuple(int(EMPTY[i : i + 2], 16) for i in (1, 3, 5))
    cells = int((pixels == grey).all(axis=2).sum()) / 300**2  # of five classes each has 300 dots
    assert cells == pytest.approx(5, abs=0.2)


def test_without_mistakes_the_page_says_so(tmp_path: Path) -> None:
    (tmp_path / "mistakes.png").write_bytes(b"of an earlier report")
    perfect = Evaluation("test", ("a", "b"), np.diag([3, 4]), np.array([3, 4]), 1.0, float("nan"))
    page = Page(write_report(perfect, tmp_path, title="t", details={}))
    assert len(page.every("img")) == 2
    assert "No drawing was taken for another class." in page.text("p")
    assert "No mistakes to show." in page.text("p")
    assert {path.name for path in tmp_path.glob("*.png")} == {"confusion.png", "classes.png"}
    assert json.loads((tmp_path / "evaluation.json").read_text())["loss"] is None


def test_split_without_drawings_and_without_pyplot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # an import of it now fails
    empty = Evaluation("test", ("a", "b"), np.zeros((2, 2), np.int64), np.zeros(2, np.int64), 0, 0)
    page = Page(write_report(empty, tmp_path, title="t", details={}))
    assert "has no drawings" in page.text("p")


def test_345_classes() -> None:
    pictures = draw_pictures(fake(345, mistakes=0))
    sizes = {}
    for name, data in pictures.items():
        with Image.open(io.BytesIO(data)) as picture:
            sizes[name] = picture.size
    assert set(sizes) == {"confusion", "classes", "pairs"}
    assert min(sizes["confusion"]) > 345 * 6  # six dots a class and the names
    assert max(sizes["confusion"]) < 2600
    assert 2000 < sizes["classes"][0] < 2600  # five columns of 69 rows, 34 dots each
    assert sizes["classes"][1] > 69 * 33


@given(st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_side_by_side_is_a_permutation(count: int, seed: int) -> None:
    rates = np.random.default_rng(seed).random((count, count)).round(1)
    assert sorted(side_by_side(rates)) == list(range(count))


def test_side_by_side_joins_those_taken_for_each_other() -> None:
    groups = ({0, 7, 3}, {1, 4}, {2, 5, 6, 8})
    rates = np.full((9, 9), 0.01)
    for group in groups:
        rates[np.ix_(sorted(group), sorted(group))] = 0.2
    order = side_by_side(rates)
    for group in groups:
        places = sorted(order.index(label) for label in group)
        assert places[-1] - places[0] == len(group) - 1


def test_text_is_cut_and_cleaned() -> None:
    assert short("abcdef", 6) == "abcdef"
    assert short("abcd fgh", 6) == "abcd…"
    assert printable("a\tb\x00c\ud800 é日\u2028") == "a b\ufffdc\ufffd é日 "


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_refused_before_anything_is_written(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(RefusedError, match=f"the package {package} is not installed") as refused:
        write_report(fake(2), tmp_path / "report", title="t", details={})
    assert "pip install 'quickdraw-dist[report]'" in refused.value.remedy
    assert not (tmp_path / "report").exists()
