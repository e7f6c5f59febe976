"""Arrow columns by views and as streams: from the libraries that lend them, and from
lenders that get it wrong.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

import pytest

from backpressure import BufferManager, InvalidEvents
from ringbuf import MessageRing
from ringbuf._messages.gathered import Gathered
from tests.ringbuf.test_offered_messages import refusal, taken
from tests.support.arrow import GET_NEXT, GET_SCHEMA, RELEASE, HandMade, HandMadeStream


def places(*offsets: int) -> bytes:
    return struct.pack(f"={len(offsets)}i", *offsets)


def short(text: bytes) -> bytes:
    return struct.pack("=i12s", len(text), text)


def long(size: int, buffer: int, offset: int) -> bytes:
    return struct.pack("=i4sii", size, b"", buffer, offset)


def sizes(*of_buffers: int) -> bytes:
    return struct.pack(f"={len(of_buffers)}q", *of_buffers)


def ab() -> HandMade:
    return HandMade(places(0, 1, 2), b"ab", 2)


# ---------------------------------------------------------------- libraries


def arrow() -> Any:
    return pytest.importorskip(
        "pyarrow", reason="pyarrow is not installed: pip install 'forebay[arrow]'"
    )


ROWS = [b"a", b"", b"b" * 12, b"c" * 13, b"d" * 400]


@pytest.mark.parametrize(
    "kind",
    [
        *("binary", "large_binary", "binary_view"),
        *("string", "large_string", "string_view"),
    ],
)
def test_arrays_and_chunked_arrays_of_every_layout(kind: str) -> None:
    pa = arrow()
    if not hasattr(pa, kind):
        pytest.skip("this pyarrow has no views")
    rows = [row.decode() for row in ROWS] if "string" in kind else ROWS
    array = pa.array(rows, getattr(pa, kind)())
    assert taken(array) == ROWS
    assert taken(array.slice(2, 2)) == ROWS[2:4]
    empty = array.slice(0, 0)
    assert taken(empty) == []
    assert taken(pa.chunked_array([array, empty, array.slice(3)])) == ROWS + ROWS[3:]
    assert taken(pa.chunked_array([], array.type)) == []
    holes = pa.array([rows[4], None, rows[3]], array.type)
    assert "message 1 is null: drop" in refusal(holes)
    assert "message 6 is null: drop" in refusal(pa.chunked_array([array, holes]))
    assert taken(pa.chunked_array([array, holes.slice(2)])) == [*ROWS, ROWS[3]]


def test_what_is_no_column_of_bytes_is_refused_with_a_hint() -> None:
    pa = arrow()
    table = pa.table({"message": ["a"]})
    hints: list[tuple[Any, str]] = [
        (table, "one of its columns"),
        (table.to_batches()[0], "one of its columns"),
        (table.to_reader(), "read_all"),
        (pa.array([{"message": "a"}]), "one of its columns"),
        (pa.array(["a"]).dictionary_encode(), "cast"),
        (pa.array([["a"]]), "cast"),
        (pa.chunked_array([[1.5]]), "cast"),
        (pa.py_buffer(b"abc"), "add_lines"),
    ]
    for given, hint in hints:
        assert hint in refusal(given)
    assert taken(table["message"]) == [b"a"]


@pytest.mark.single_thread
@pytest.mark.uninstrumented
def test_series_of_polars() -> None:
    pl = pytest.importorskip("polars", reason="polars is not installed: pip install polars")
    texts = [row.decode() for row in ROWS]
    assert taken(pl.Series(texts)) == taken(pl.Series(ROWS)) == ROWS
    assert taken(pl.Series([], dtype=pl.String)) == []
    parts = pl.concat([pl.Series(texts), pl.Series(texts)], rechunk=False)
    assert taken(parts) == ROWS * 2
    assert "null" in refusal(pl.Series(["a", None]))
    assert "cast" in refusal(pl.Series([1.5]))
    frame = pl.DataFrame({"message": texts})
    assert "one of its columns" in refusal(frame)
    assert "one of its columns" in refusal(frame.lazy())
    assert taken(frame["message"]) == ROWS


@pytest.mark.single_thread
@pytest.mark.uninstrumented
def test_series_of_pandas() -> None:
    arrow()
    pd = pytest.importorskip("pandas", reason="pandas is not installed: pip install pandas")
    assert taken(pd.Series(["a", "é"])) == [b"a", "é".encode()]
    assert taken(pd.Series([b"a", "b"], [7, 5], dtype=object)) == [b"a", b"b"]
    assert taken(pd.Index(["a", "b"])) == [b"a", b"b"]
    assert "null" in refusal(pd.Series(["a", None]))
    assert "no value" in refusal(pd.Series(["a", None], dtype=object))
    assert "numbers" in refusal(pd.Series([1.5]))
    frame = pd.DataFrame({"host": ["a"], "message": ["b"]})
    assert "one of its columns" in refusal(frame)
    assert taken(frame["message"]) == [b"b"]


def test_a_column_whose_library_lacks_arrow_gives_its_items() -> None:
    class Column(list[str]):
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            raise ImportError("pyarrow is needed")

    assert taken(Column(["a", "b"])) == [b"a", b"b"]


# ---------------------------------------------------------------- views by hand


def test_views_lie_in_themselves_or_in_buffers() -> None:
    views = short(b"a") + long(13, 1, 2) + short(b"x" * 12) + long(14, 0, 0)
    lent = HandMade(views, b"A" * 14, 4, form=b"vz", more=[b"--" + b"B" * 13, sizes(14, 15)])
    got = Gathered(lent)
    ring = MessageRing(4096)
    ring.push_gathered(got)
    assert ring.pop_many().tolist() == [b"a", b"B" * 13, b"x" * 12, b"A" * 14]
    del got
    assert lent.released == 1
    # Without a buffer of data there are the sizes, of none.
    assert MessageRing(4096).push_many(HandMade(short(b"a"), None, 1, form=b"vu")) == 1


@pytest.mark.parametrize(
    "view",
    [
        *(long(-1, 0, 0), long(13, -1, 0), long(13, 2, 0), long(13, 1, 0), long(13, 0, -1)),
        *(long(13, 0, 2), long((1 << 31) - 1, 0, (1 << 31) - 1)),
    ],
)
@pytest.mark.parametrize("of_buffers", [sizes(14, 14), sizes(-1, -1), None])
def test_views_of_what_is_not_there_are_refused(view: bytes, of_buffers: bytes | None) -> None:
    lent = HandMade(short(b"a") + view, b"A" * 14, 2, form=b"vu", more=[None, of_buffers])
    ring = MessageRing(4096)
    with pytest.raises(ValueError, match=r"message 1 of the Arrow array has .* not there"):
        ring.push_many(lent)
    assert len(ring) == 0
    assert lent.released == 1


@pytest.mark.parametrize("count", [-1, 0, 2, (1 << 31), (1 << 62)])
def test_views_in_so_many_buffers_are_refused(count: int) -> None:
    lent = HandMade(short(b"a"), None, 1, form=b"vz")
    lent.array.n_buffers = count
    with pytest.raises(ValueError, match="at least 3 buffers"):
        MessageRing(4096).push_many(lent)


def test_views_that_are_missing_are_refused() -> None:
    with pytest.raises(ValueError, match="no views"):
        MessageRing(4096).push_many(HandMade(None, None, 1, form=b"vz"))


# ---------------------------------------------------------------- streams by hand


def test_a_stream_is_moved_read_to_its_end_and_released_once() -> None:
    first, second = ab(), HandMade(places(1, 3), b"-cd", 1)
    lent = HandMadeStream(first, HandMade(None, None, 0), second)
    gathered = Gathered(lent)
    assert (lent.released, lent.schema_released, first.released) == (1, 1, 0)
    with pytest.raises(ValueError, match="consumed"):
        Gathered(lent)
    ring = MessageRing(4096)
    ring.push_gathered(gathered)
    assert ring.pop_many().tolist() == [b"a", b"b", b"cd"]
    del gathered
    assert (first.released, second.released, lent.released) == (1, 1, 1)


@pytest.mark.parametrize(
    ("error", "said"), [((5, b"the disk is gone"), "the disk is gone"), ((5, None), "error 5")]
)
def test_of_a_stream_that_fails_in_the_middle_nothing_is_taken(
    error: tuple[int, bytes | None], said: str
) -> None:
    first = ab()
    lent = HandMadeStream(first, error=error)
    with BufferManager() as buffer:
        with pytest.raises(
            InvalidEvents, match=f"failed after 2 messages, and none of them was taken: {said}"
        ):
            buffer.add_events(lent)
        assert (buffer.stats().offered, buffer.stats().resident) == (0, 0)
    assert (lent.released, lent.schema_released, first.released) == (1, 1, 1)


def test_a_stream_without_a_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="failed after 0 messages"):
        Gathered(HandMadeStream(ab(), schema_error=22))


def release_schema_before(stream: HandMadeStream) -> None:
    stream._release_of_schema = RELEASE()


def drop(name: str, kind: Any) -> Callable[[HandMadeStream], None]:
    return lambda lent: setattr(lent.stream, name, kind())


@pytest.mark.parametrize(
    ("harm", "match"),
    [
        (release_schema_before, "schema was consumed"),
        (drop("release", RELEASE), "stream was consumed"),
        (drop("get_schema", GET_SCHEMA), "lacks"),
        (drop("get_next", GET_NEXT), "lacks"),
    ],
)
def test_streams_with_callbacks_missing_are_refused(
    harm: Callable[[HandMadeStream], None], match: str
) -> None:
    lent = HandMadeStream(ab())
    harm(lent)
    ring = MessageRing(4096)
    with pytest.raises(ValueError, match=match):
        ring.push_many(lent)
    assert len(ring) == 0


def test_an_array_without_a_release_ends_the_stream() -> None:
    first, second = ab(), ab()
    second.array.release = RELEASE()
    assert MessageRing(4096).push_many(HandMadeStream(first, second, ab())) == 2


def test_what_is_wrong_in_a_later_array_is_told_by_its_place_in_all() -> None:
    wrong = HandMade(places(0, 2, 1), b"ab", 2)
    with pytest.raises(ValueError, match="message 3 is from 2 to 1"):
        MessageRing(4096).push_many(HandMadeStream(ab(), wrong))
    long_one = HandMade(places(0, 9999), b"x" * 9999, 1)
    with pytest.raises(ValueError, match="message 2 has 9,999 bytes"):
        MessageRing(4096).push_many(HandMadeStream(ab(), long_one))


@pytest.mark.parametrize("form", [b"+s", b"+l", b"l", b"vl", b"", b"w:4", b"\xff"])
def test_streams_of_something_else_are_refused(form: bytes) -> None:
    lent = HandMadeStream(ab(), form=form)
    with pytest.raises(TypeError, match="binary or string"):
        Gathered(lent)
    assert (lent.released, lent.schema_released) == (1, 1)


@pytest.mark.parametrize("answer", [None, (), 1, ab().capsules[0]])
def test_what_is_no_stream_capsule_is_refused(answer: object) -> None:
    class Strange:
        def __arrow_c_stream__(self, requested_schema: object = None) -> object:
            return answer

    with pytest.raises(TypeError, match="arrow_array_stream"):
        Gathered(Strange())
