"""The attribute codec."""

from __future__ import annotations

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scache.protocol.codec import decode, decode_id, decode_integer, decode_ttl, encode, token_at
from tests.support.machines import values

LIBC = ctypes.CDLL(None)

names = st.binary(min_size=1, max_size=12).map(lambda name: name.replace(b"\0", b"n"))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ([], b"\0"),
        ([(b"dummy", b"")], b"dummy\0\0\0"),
        ([(b"label", b"a"), (b"label", b"b")], b"label\0a\0label\0b\0\0"),
        ([(b"property", b"\n\xff \x01")], b"property\0\n\xff \x01\0\0"),
    ],
)
def test_encode_ends_strings_and_message_with_nul(
    attributes: list[tuple[bytes, bytes]], message: bytes
) -> None:
    """A message is its names and values, each with a NUL after it, and one more NUL."""
    assert encode(attributes) == message


@pytest.mark.parametrize("attribute", [(b"", b"x"), (b"a\0b", b"x"), (b"a", b"x\0y")])
def test_encode_refuses_empty_name_and_nul(attribute: tuple[bytes, bytes]) -> None:
    """The receiver would take them for the end of the message or of the string."""
    with pytest.raises(ValueError, match="attribute"):
        encode([attribute])


@given(st.lists(st.tuples(names, values)), st.binary())
def test_decode_returns_the_encoded_attributes(
    attributes: list[tuple[bytes, bytes]], rest: bytes
) -> None:
    """The message may begin anywhere in the buffer, and other bytes may follow."""
    message = encode(attributes)
    assert decode(b"before" + message + rest, 6) == (attributes, 6 + len(message))


@given(st.lists(st.tuples(names, values)), st.data())
def test_decode_returns_none_for_an_incomplete_message(
    attributes: list[tuple[bytes, bytes]], data: st.DataObject
) -> None:
    """A message is complete with its last NUL."""
    message = encode(attributes)
    assert decode(message[: data.draw(st.integers(0, len(message) - 1))], 0) is None


def test_token_at_returns_a_token_with_its_final_nul_only() -> None:
    """Without the NUL, the token may be incomplete."""
    assert token_at(b"a\0bc\0d", 2) == (b"bc", 5)
    assert token_at(b"a\0\0", 2) == (b"", 3)
    assert token_at(b"a\0bc\0d", 5) is None


def scan_unsigned(value: bytes) -> int | None:
    """Return the integer that C's sscanf reads with ``%u`` into an int, as Postfix does."""
    number, rest = ctypes.c_int(0), ctypes.c_char()
    count = LIBC.sscanf(value, b"%u%c", ctypes.byref(number), ctypes.byref(rest))
    return number.value if count == 1 else None


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (b"0", 0),
        (b"300", 300),
        (b" 7", 7),
        (b"\t\n\v\f\r7", 7),
        (b"+7", 7),
        (b"-5", -5),
        (b"007", 7),
        (b"2147483648", -(2**31)),
        (b"4294967296", 0),
        (b"18446744073709551615", -1),
        (b"-18446744073709551615", 1),
        (b"18446744073709551616", -1),
        (b"-99999999999999999999", -1),
        (b"9" * 5000, -1),
        (b"0" * 5000 + b"7", 7),
        (b"", None),
        (b" ", None),
        (b"abc", None),
        (b"7 ", None),
        (b"7x", None),
        (b"7\n", None),
        (b"0x10", None),
        (b"1_0", None),
        (b"+-7", None),
        (b"- 7", None),
        (b"-", None),
        ("\u0663".encode(), None),
        (b"\xff", None),
    ],
)
def test_decode_integer_reads_as_postfix_does(value: bytes, number: int | None) -> None:
    """The result is that of C's ``%u``, stored in an int. No byte may follow the digits."""
    assert scan_unsigned(value) == number
    assert decode_integer(value) == number


@given(
    st.one_of(
        st.text(" \t\n\v\f\r+-0123456789x", max_size=25).map(str.encode),
        st.integers(-(2**70), 2**70).map(b"%d".__mod__),
        values,
    )
)
def test_decode_integer_agrees_with_c_for_any_bytes(value: bytes) -> None:
    """Also where the value is not a number."""
    assert decode_integer(value) == scan_unsigned(value)


NO_IDS = [
    *(b"", b" ", b"-1", b"+1", b" 1", b"1 ", b"1\n", b"0x1", b"1_0", b"1.0", b"\xff"),
    *("\u0663".encode(), b"9223372036854775808", b"18446744073709551617", b"9" * 5000),
    b"0" * 20,
]


@pytest.mark.parametrize("value", NO_IDS)
def test_decode_id_refuses_all_but_digits_of_a_row_id(value: bytes) -> None:
    """A large number that wraps around would name another row."""
    assert decode_id(value) is None


@given(st.integers(0, 2**63 - 1))
def test_decode_id_reads_every_row_id(number: int) -> None:
    """The range includes the largest integer of SQLite."""
    assert decode_id(b"%d" % number) == number
    assert decode_id(b"%d" % (2**63 - 1 - number)) == 2**63 - 1 - number


@pytest.mark.parametrize(
    ("value", "ttl"), [(b"1", 1), (b" 7", 7), (b"0", None), (b"-5", None), (b"4294967296", None)]
)
def test_decode_ttl_is_at_least_1(value: bytes, ttl: int | None) -> None:
    """The integer that C reads may be 0 or negative."""
    assert decode_ttl(value) == ttl
