"""The official .ndjson files, simplified and raw: written, read back, and every fault named."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quickdraw_dist.base.errors import RefusedError
from quickdraw_dist.data.drawings.strokes import ndjson
from quickdraw_dist.data.drawings.strokes.arrays import UNKNOWN, Strokes
from quickdraw_dist.data.drawings.strokes.records import BadRecord
from tests.support.data import stroke_files as support


def parsed(data: bytes, word: str = "cat") -> Strokes:
    """All drawings of a file."""
    edges = np.concatenate([[0], ndjson.find_ends(data, True)])
    return ndjson.parse(data, edges, word)


NEWLINES = ["\n", "\r\n", "\n\n", "\r\n\r\n\r\n", "\n \t\n", "\r\n  \r\n  "]


@given(made=support.drawings(least=1), data=st.data())
def test_any_drawings_come_back_from_any_range(made: Strokes, data: st.DataObject) -> None:
    """Whatever ends a line; blank lines belong to the record before them, or to the first."""
    flags = [data.draw(st.sampled_from([int(flag), UNKNOWN])) for flag in made.recognized]
    newline = data.draw(st.sampled_from(NEWLINES))
    written = support.to_ndjson(support.as_lists(made), flags, "cat", newline)
    written = data.draw(st.sampled_from([b"", b"\n", b"\r\n", b" \n\t"])) + written
    written += data.draw(st.sampled_from([b"", b"  ", b"\t\r"]))  # a last line without an end
    if data.draw(st.booleans()):
        written = written.rstrip()
    edges = np.concatenate([[0], ndjson.find_ends(written, True)])
    assert (len(edges), edges[-1]) == (len(made) + 1, len(written))
    start = data.draw(st.integers(0, len(made)))
    stop = data.draw(st.integers(start, len(made)))
    piece = written[edges[start] : edges[stop]]
    read = ndjson.parse(piece, edges[start : stop + 1] - edges[start], "cat")
    assert support.as_lists(read) == support.as_lists(made.slice(start, stop))
    assert read.recognized.tolist() == flags[start:stop]


@given(made=support.drawings(least=1), newline=st.sampled_from(NEWLINES),
       data=st.data())  # fmt: skip
def test_records_are_found_in_pieces(made: Strokes, newline: str, data: st.DataObject) -> None:
    """A file is read a few megabytes at a time: a piece may end between a record and its end."""
    flags = made.recognized.tolist()
    written = support.to_ndjson(support.as_lists(made), flags, "cat", newline)
    cut = data.draw(st.integers(1, len(written)))
    found = ndjson.find_ends(written[:cut], False).tolist()
    start = found[-1] if found else 0
    rest = ndjson.find_ends(written[start:], True) + start
    assert found + rest.tolist() == ndjson.find_ends(written, True).tolist()


def line(**fields: object) -> bytes:
    """A record of a cat, with some fields changed."""
    record: dict[str, object] = {"word": "cat", "drawing": [[[1, 2], [3, 4]]]} | fields
    return json.dumps(record).encode()


def of(*stroke: object) -> bytes:
    """A record of a good stroke and another one."""
    return line(drawing=[[[1, 2], [3, 4]], list(stroke)])


def raw(x: list[object], y: list[object]) -> bytes:
    """A record of a good raw stroke and another one."""
    return line(drawing=[[[1.5, 2], [3, 4], [0, 1]], [x, y, [0, 1]]])


BAD = {
    "not JSON": (b'{"word": }', "unexpected character"),
    "an array": (b'["{}"]', "not a JSON object"),
    "another class": (line(word="dog"), "a drawing of 'dog' in the file of 'cat'"),
    "no drawing": (b'{"word": "cat"}', "drawing is missing or not a list of strokes"),
    "a number": (line(drawing=5), "drawing is missing or not a list of strokes"),
    "numbers": (line(drawing=[1]), "drawing is missing or not a list of strokes"),
    "recognized, a word": (line(recognized="yes"), "recognized is neither true nor false"),
    "recognized, a list": (line(recognized=[]), "recognized is neither true nor false"),
    "x only": (of([1, 2]), "stroke 1 is not a list of x and a list of y"),
    "a count": (of(3, 3), "stroke 1 is not a list of x and a list of y"),
    "uneven": (of([1, 2], [3]), "stroke 1 has 2 x and 1 y"),
    "no points": (of([], []), "stroke 1 has no points"),
    "256": (of([256], [0]), "stroke 1 has a coordinate that is not an integer of 0 to 255"),
    "-1": (of([0], [-1]), "stroke 1 has a coordinate that is not an integer of 0 to 255"),
    "1.5": (of([0], [1.5]), "stroke 1 has a coordinate that is not an integer of 0 to 255"),
    "long": (of([1] * 65_536, [1] * 65_536), "stroke 1 has 65,536 points, 65,535 at most"),
    "many": (line(drawing=[[[1], [1]]] * 65_536), "65,536 strokes, 65,535 at most"),
    "half raw": (of([1], [1], [0]), "stroke 0 is not three lists, as the others are"),
    "raw, uneven": (line(drawing=[[[1, 2], [1], [0]]]), "stroke 0 has 2 x and 1 y"),
    "raw, no points": (line(drawing=[[[], [], []]]), "a stroke has no points"),
    "raw, digits": (raw(["1", "9"], [2, 3]), "stroke 1 has a coordinate that is not a number"),
    "raw, words": (raw([1, 9], ["a", 3]), "stroke 1 has a coordinate that is not a number"),
    "raw, null": (raw([1, None], [2, 3]), "stroke 1 has a coordinate that is not a number"),
    "raw, true": (raw([1, 9], [2, True]), "stroke 1 has a coordinate that is not a number"),
    "raw, nested": (raw([[1], [9]], [[2], [3]]), "stroke 1 has a coordinate that is not a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_record_is_named(case: str) -> None:
    """Its row and its byte, and what is wrong with it."""
    bad, problem = BAD[case]
    data = line() + b"\n" + bad + b"\n" + line()
    edges = np.array([0, len(line()) + 1, len(data) - len(line()), len(data)])
    with pytest.raises(BadRecord) as caught:
        ndjson.parse(data, edges, "cat")
    error = caught.value
    assert (error.row, error.byte) == (1, len(line()) + 1)
    assert problem in error.problem


def test_a_raw_stroke_that_keeps_too_many_points_is_named() -> None:
    """A scribble in a small corner: hardly a point of it lies near the line of its neighbours."""
    scribble = np.random.default_rng(1).integers(0, 20, (2, 80_000)).tolist()
    stroke = [[0, 255], [0, 255], [0, 1]]
    data = line(drawing=[stroke, [*scribble, []]])
    with pytest.raises(
        BadRecord, match=r"stroke 1 has \d\d,\d{3} points, 65,535 at most"
    ) as caught:
        parsed(data)
    assert (caught.value.row, caught.value.byte) == (0, 0)


def test_longest_strokes_and_blank_drawings_are_read() -> None:
    """766 points in a stroke is the official record."""
    long = [([7] * 766, [number % 256 for number in range(766)])]
    lists: support.Lists = [long, [], [([1] * 65_535, [0] * 65_535)]]
    read = parsed(support.to_ndjson(lists, [UNKNOWN, 1, 0], "cat", key_id="5"))
    assert support.as_lists(read) == lists


@pytest.mark.parametrize("word", ["cat", "dog"])
def test_fields_may_be_missing(word: str) -> None:
    """Some official lines have neither key_id nor recognized; one's own need no word."""
    assert len(parsed(b'{"drawing": [[[1], [2]]]}', word)) == 1


def test_a_file_that_is_cut_off_is_told() -> None:
    """Half a download ends in the middle of a line, or of nothing."""
    data = line() + b"\n" + line()[:20]
    with pytest.raises(BadRecord) as caught:
        ndjson.find_ends(data, True)
    error = caught.value
    assert (error.row, error.byte) == (1, len(line()) + 1)
    assert error.problem == f"the file ends within this record, at byte {len(data)}"
    with pytest.raises(BadRecord, match="no drawing in it"):
        ndjson.find_ends(b"\r\n \n\t", True)


def test_a_byte_order_mark_is_named() -> None:
    """An editor on Windows adds it; fetching the file again would not help."""
    with pytest.raises(BadRecord, match="a byte order mark; save the file as UTF-8 without one"):
        ndjson.find_ends(b"\xef\xbb\xbf" + line() + b"\n", False)


def test_without_orjson_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who installs the trainer alone has no reader for JSON at this speed."""
    monkeypatch.setitem(sys.modules, "orjson", None)
    with pytest.raises(RefusedError, match=r"quickdraw-dist\[strokes\]"):
        parsed(line())


def test_official_raw_drawings_become_the_official_simplified_ones(real_data: Path) -> None:
    """Every raw drawing at hand whose simplified form is, too: equal in every point."""
    pairs = 0
    for path in sorted((real_data / "raw").glob("*.ndjson")):
        raw = parsed(path.read_bytes(), path.stem)
        keys = [json.loads(text)["key_id"] for text in path.read_text("utf-8").splitlines()]
        simplified = (real_data / "simplified" / path.name).read_bytes()
        ids = [json.loads(text).get("key_id") for text in simplified.decode().splitlines()]
        rows = np.array([ids.index(key) for key in keys])
        assert support.equal(raw, parsed(simplified, path.stem).take(rows)), path.name
        pairs += len(keys)
    assert pairs == 516
