from __future__ import annotations

import datetime as dt
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from modelvold.oci.file_metadata import LATEST, FileMetadata, nanoseconds, read_metadata

KEY = "org.cncf.model.file.metadata+json"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:01.5Z", 1_500_000_000),
        ("2025-07-01T10:20:30.123456789Z", 1_751_365_230_123_456_789),
        ("2025-07-01T12:20:30.123456789+02:00", 1_751_365_230_123_456_789),
        ("2025-07-01T05:50:30.123456789-04:30", 1_751_365_230_123_456_789),
        ("2025-07-01T10:20:30.1234567891234Z", 1_751_365_230_123_456_789),
        ("0001-01-01T00:00:00Z", 0),
        ("1969-12-31T23:59:59Z", 0),
        ("9999-12-31T23:59:59Z", LATEST),
        ("2025-13-01T00:00:00Z", 0),
        ("2025-00-01T00:00:00Z", 0),
        ("0000-01-01T00:00:00Z", 0),
        ("2025-07-01T10:20:30", 0),
        ("yesterday", 0),
        ("", 0),
    ],
)
def test_times(text: str, expected: int) -> None:
    assert nanoseconds(text) == expected


@given(
    st.integers(86_400, 4_400_000_000),
    st.integers(0, 999_999_999),
    st.integers(-14 * 60, 14 * 60),
)
def test_times_agree_with_datetime(moment: int, fraction: int, east: int) -> None:
    zone = dt.timezone(dt.timedelta(minutes=east))
    stamp = dt.datetime.fromtimestamp(moment, zone).isoformat()
    text = f"{stamp[:19]}.{fraction:09d}{stamp[19:]}"
    assert nanoseconds(text) == moment * 1_000_000_000 + fraction


@pytest.mark.parametrize("flag", [0, 48, "0", "", None])
def test_regular_files_of_all_packers(flag: Any) -> None:
    text = json.dumps(
        {"name": "x", "mode": 0o100640, "size": 7, "typeflag": flag, "files": 3, "mtime": "1970-01-01T00:00:02Z"}
    )
    assert read_metadata({KEY: text}) == FileMetadata(mode=0o640, mtime=2_000_000_000, size=7, is_regular=True)


@pytest.mark.parametrize("flag", [5, 2, 53, "5", [], {}])
def test_other_kinds_are_told(flag: Any) -> None:
    assert not read_metadata({KEY: json.dumps({"typeflag": flag})}).is_regular


@pytest.mark.parametrize(
    "text", ["", "{", '{"name": "a"b"}', "[]", "7", "null", '{"mode": "0644", "size": true, "mtime": 3}']
)
def test_broken_metadata_says_nothing(text: str) -> None:
    assert read_metadata({KEY: text}) == FileMetadata()


@pytest.mark.parametrize(
    "key", ["org.cnai.model.file.metadata+json", "org.cnai.model.file.metadata", "org.cncf.model.file.metadata"]
)
def test_former_names(key: str) -> None:
    assert read_metadata({key: '{"size": 9, "mode": 384}'}) == FileMetadata(mode=0o600, size=9)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["mode", "size", "mtime", "typeflag", "name"]), JSON))
def test_no_metadata_raises(fields: dict[str, Any]) -> None:
    metadata = read_metadata({KEY: json.dumps(fields)})
    assert 0 < metadata.mode <= 0o777
    assert 0 <= metadata.mtime <= LATEST
