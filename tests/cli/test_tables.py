"""Output formats: tables and event lines, JSON and CSV."""

from __future__ import annotations

import base64
import csv
import io
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from scache.cli.render import tables
from scache.cli.render.formats import csv_line, distinct, flat, json_array, json_objects, json_value
from scache.cli.render.tables import shortened, shortened_inside, span
from scache.escape import shown
from scache.inspection.image import Result, Value
from tests.support.sample_database import ODD

WIDTHS = [20, 40, 60, 80, 132]


def result(columns: list[str], *rows: tuple[Value, ...]) -> Result:
    """Return the result of a statement."""
    return Result(columns, iter(rows), -1)


def table(
    columns: list[str],
    rows: Sequence[Sequence[Value]],
    width: int | None,
    *,
    all_columns: bool = False,
) -> str:
    """Return a table as text."""
    pieces = tables.tables(columns, rows, width, all_columns=all_columns)
    return "\n".join(piece.plain for piece in pieces)


class TestShown:
    @pytest.mark.parametrize("label", ODD.values(), ids=ODD)
    def test_shown_label_is_printable(self, label: bytes) -> None:
        """Any label is one line of printable characters, which cannot control a terminal."""
        assert shown(label).isprintable()

    @pytest.mark.parametrize(
        ("value", "text"),
        [
            (b"mx.example.org", "mx.example.org"),
            (b"a\nb\x1b[2J", r"a\nb\x1b[2J"),
            (b"\xff\xc3\xa9", r"\xffé"),
            ("\u202eab\u200b".encode(), r"\u202eab\u200b"),
            (b"[red]:smiley:", "[red]:smiley:"),
            (None, ""),
            (-5, "-5"),
            (0.25, "0.25"),
        ],
    )
    def test_shown_escapes_unprintable_characters(self, value: Value, text: str) -> None:
        """Other text is unchanged."""
        assert shown(value) == text

    @pytest.mark.parametrize("width", [1, 2, 5, 30])
    @pytest.mark.parametrize("label", ODD.values(), ids=ODD)
    def test_shortened_text_fits_width(self, label: bytes, width: int) -> None:
        """Wide characters count as in the terminal."""
        text = shortened(shown(label), width)
        assert cell_len(text) <= width
        assert text == shown(label) or text.endswith("…")

    @pytest.mark.parametrize("width", [1, 2, 5, 30])
    @pytest.mark.parametrize("label", ODD.values(), ids=ODD)
    def test_text_shortened_inside_fits_width(self, label: bytes, width: int) -> None:
        """Its begin and its end stay."""
        text = shortened_inside(shown(label), width)
        assert cell_len(text) <= width
        assert text == shown(label) or "…" in text

    @pytest.mark.parametrize(
        ("seconds", "text"),
        [
            (0, "0s"),
            (0.25, "0.25s"),
            (2, "2s"),
            (9.5, "9.50s"),
            (9.999, "10s"),
            (59, "59s"),
            (59.7, "1m"),
            (60, "1m"),
            (123, "2m 03s"),
            (18_000, "5h"),
            (86_400, "1d"),
            (1_051_200, "12d 04h"),
        ],
    )
    def test_span_has_at_most_two_units(self, seconds: float, text: str) -> None:
        """Seconds below ten have two decimals."""
        assert span(seconds) == text


class TestTables:
    @pytest.mark.parametrize("width", WIDTHS)
    @pytest.mark.parametrize("count", [1, 3, 15])
    def test_table_fits_width(self, width: int, count: int) -> None:
        """No line is wider than the terminal with any labels."""
        columns = [f"column {number}" for number in range(count)]
        rows = [[label] * count for label in ODD.values()]
        for line in table(columns, rows, width).splitlines():
            assert cell_len(line) <= width
            assert line.isprintable()

    def test_table_aligns_columns(self) -> None:
        """Text is aligned to the left, numbers to the right, and NULL is empty."""
        rows: list[list[Value]] = [[b"mx1", 5, None], [b"a.longer.name", 12345, 0.5]]
        assert table(["endpoint", "n", "x"], rows, 60).splitlines() == [
            "endpoint           n    x",
            "─────────────  ─────  ───",
            "mx1                5",
            "a.longer.name  12345  0.5",
        ]

    def test_table_shortens_long_text(self) -> None:
        """Numbers and times are not shortened."""
        at = b"2023-11-14T22:13:20.000Z"
        text = table(["id", "endpoint", "at"], [[123456789, b"x" * 3000, at]], 60)
        assert text.splitlines()[-1] == f"123456789  {'x' * 22}…  {at.decode()}"

    def test_wide_table_with_all_columns_becomes_blocks(self) -> None:
        """A row is a block of lines if its columns do not fit beside each other."""
        columns = ["id", "saved_at", "expires_at", "label"]
        at = b"2023-11-14T22:13:20.000Z"
        rows: list[list[Value]] = [[7, at, at, b"x" * 90], [8, at, at, b"y"]]
        text = table(columns, rows, 40, all_columns=True)
        block = text.split("\n\n")[0].splitlines()
        assert block == [
            "id          7",
            "saved_at    2023-11-14T22:13:20.000Z",
            "expires_at  2023-11-14T22:13:20.000Z",
            f"label       {'x' * 27}…",
        ]

    @pytest.mark.parametrize("width", [20, 40, 60, 80])
    def test_wide_table_keeps_one_line_for_each_row(self, width: int) -> None:
        """Columns that do not fit are left out, and a line at the end says which."""
        at = b"2023-11-14T22:13:20.000Z"
        columns = ["id", "saved_at", "expires_at", "label"]
        rows: list[list[Value]] = [[number, at, at, b"x" * 90] for number in range(30)]
        lines = table(columns, rows, width).splitlines()
        assert len(lines) == 2 + len(rows) + (width < 80)
        assert all(cell_len(line) <= width for line in lines)
        assert [line.split()[0] for line in lines[2:32]] == list(map(str, range(30)))
        if width == 60:
            assert lines[-1] == "(--all-columns shows 1 more: label)"

    def test_table_aligns_later_rows_with_the_first_header(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Rows are laid out as they come, and stand under the header of the first."""
        monkeypatch.setattr(tables, "CHUNK", 2)
        rows: list[list[Value]] = [[number, b"x" * number] for number in range(5)]
        *_, last = table(["n", "label"], rows, 60).splitlines()
        assert last == "4  xxxx"

    @pytest.mark.parametrize("width", [30, 60, None])
    def test_table_widens_columns_for_longer_numbers(
        self, width: int | None, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The numbers are aligned under the name of their column."""
        monkeypatch.setattr(tables, "CHUNK", 2)
        ids = [10**digits for digits in range(9)]
        lines = table(["id", "label"], [[each, b"x" * 50] for each in ids], width).splitlines()
        assert [int(line.split()[0]) for line in lines if "x" in line] == ids
        for line in lines:
            assert width is None or cell_len(line) <= width
            if "id" in line:
                end = line.index("id") + len("id")
            elif "x" in line:
                assert line.index(" ", end - 1) == end

    def test_table_repeats_header_when_columns_become_wider(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first rows do not limit the width of a column."""
        monkeypatch.setattr(tables, "CHUNK", 1)
        kinds = [b"expired", b"purge_endp", b"lost"]
        text = table(["kind", "n"], [[kind, 1] for kind in kinds], 60)
        assert text.splitlines() == [
            *("kind     n", "───────  ─", "expired  1"),
            *("kind        n", "──────────  ─", "purge_endp  1", "lost        1"),
        ]

    def test_table_does_not_shorten_number_in_text_column(self) -> None:
        """In a column with both, only text is shortened."""
        rows: list[list[Value]] = [[b"x" * 90, b"y" * 90], [2**62, b"y"]]
        assert str(2**62) in table(["a", "b"], rows, 37)

    def test_table_without_rows_says_so(self) -> None:
        """The text is ``(no rows)``."""
        assert table(["id"], [], 60) == "(no rows)"

    def test_table_in_a_file_has_a_width_limit_for_columns(self) -> None:
        """A column has at most 200 characters."""
        assert len(table(["label"], [[b"x" * 150]], None).splitlines()[-1]) == 150
        assert len(table(["label"], [[b"x" * 3000]], None).splitlines()[-1]) == 200


class TestJson:
    @pytest.mark.parametrize("label", ODD.values(), ids=ODD)
    def test_json_keeps_every_byte(self, label: bytes) -> None:
        """Bytes that are not UTF-8 become an object with Base64."""
        text = json_value(label)
        assert text.isascii()
        value = json.loads(text)
        if isinstance(value, dict):
            assert value.pop("$base64") is True
            assert base64.b64decode(value.pop("encoded")) == label
            assert value == {}
        else:
            assert value.encode() == label

    @pytest.mark.parametrize("value", [0, -(2**63), 0.1, 1e300, float("inf"), -float("inf"), None])
    def test_json_keeps_numbers(self, value: Value) -> None:
        """A number is read as it was written."""
        assert json.loads(json_value(value)) == value

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_json_array_has_one_object_for_each_line(self, count: int) -> None:
        """The whole output is valid JSON."""
        rows = [(number, b"x") for number in range(count)]
        text = "".join(json_array(result(["n", "label"], *rows)))
        assert json.loads(text) == [{"n": number, "label": "x"} for number in range(count)]
        assert text.count("\n") == (count + 1 if count else 0)

    @pytest.mark.parametrize(
        ("columns", "keys"),
        [
            (["a", "b", "a"], ["a", "b", "a_2"]),
            (["a", "a", "a_2"], ["a", "a_3", "a_2"]),
            (["a_2", "a", "a"], ["a_2", "a", "a_3"]),
            (["a", "a", "a_2", "a_2"], ["a", "a_3", "a_2", "a_2_2"]),
            (["a", "a", "a_2", "a_2", "a_2_2"], ["a", "a_3", "a_2", "a_2_3", "a_2_2"]),
            (["a", "A", "a"], ["a", "A", "a_2"]),
            (["", "", "_2"], ["", "_3", "_2"]),
            (["table", "table", "table_2"], ["table_3", "table_4", "table_2"]),
        ],
    )
    def test_json_numbers_columns_of_the_same_name(
        self, columns: list[str], keys: list[str]
    ) -> None:
        """No value is lost, and a name that is there once stays as it is."""
        (text,) = json_objects(result(columns, tuple(range(len(columns)))), table="t")
        pairs = json.loads(text, object_pairs_hook=list)
        assert pairs == [("table", "t"), *((key, number) for number, key in enumerate(keys))]

    @given(st.lists(st.sampled_from(["a", "a_2", "a_3", "a_2_2", "table", "table_2"])))
    def test_json_keys_are_unique(self, columns: list[str]) -> None:
        """This holds for all names of columns."""
        names = distinct(columns)
        assert len({*names}) == len(columns)
        assert all(name.startswith(column) for name, column in zip(names, columns, strict=True))


class TestCsv:
    def test_csv_text_is_exact_and_quoted(self) -> None:
        """A CSV reader returns the label, with its newlines and bytes."""
        data = b"".join(csv_line([number, label]) for number, label in enumerate(ODD.values()))
        rows = list(csv.reader(io.StringIO(data.decode("latin-1"), newline="")))
        assert [(int(number), label.encode("latin-1")) for number, label in rows] == list(
            enumerate(ODD.values())
        )

    def test_csv_null_is_not_empty_text(self) -> None:
        """NULL is an empty field, and empty text is a pair of quotes."""
        assert csv_line([None, b"", 1, 0.5]) == b',"",1,0.5\n'

    def test_flat_figures_have_names_with_dots(self) -> None:
        """Nested figures become rows."""
        figures = {"a": 1, "b": {"c": {"d": 0.5}, "e": True}}
        assert dict(flat(figures)) == {"a": 1, "b.c.d": 0.5, "b.e": 1}
