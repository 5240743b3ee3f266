from __future__ import annotations

import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelvold.layer.extent import BLOCK, ContentOffset, Extent
from modelvold.layer.tar import TarWalker

from tests.layer.tars import GNU, USTAR, V7, header, member, pax, summed
from tests.layer.walks import only, outcome, refused


@pytest.mark.parametrize(
    ("field", "size"),
    [
        (b"00000000017\0", 15),
        (b"000000000017", 15),
        (b"         17 ", 15),
        (b"17\0garbage  ", 15),
        (b"  17 \0", 15),
        (bytes(12), 0),
        (b" " * 12, 0),
        (b"\x80" + bytes(10) + b"\x0f", 15),
    ],
)
def test_sizes_as_they_are_written(field: bytes, size: int) -> None:
    assert only(header(size=field[:12]), bytes(512 if size else 0)).size == size


@pytest.mark.parametrize(
    ("field", "saying"),
    [
        (b"-0000000017\0", "no number"),
        (b"+0000000017\0", "no number"),
        (b"0o000000017\0", "no number"),
        (b"0000_000017\0", "no number"),
        (b"00000000018\0", "no number"),
        (b"000 0000017\0", "no number"),
        (b"\x0000000000017", "no number"),
        (b"0x000000017\0", "no number"),
        (b"\xff" * 12, "a size of -1 bytes"),
        (b"\xc0" + bytes(11), "a size of -"),
        (b"\x80\xff" + b"\xff" * 10, "beyond the tar's"),
        (b"77777777777\0", "8589934591 bytes end at 8589935103, beyond the tar's 1536"),
        (b"00000002001\0", "1025 bytes end at 1537, beyond the tar's 1536"),
    ],
)
def test_sizes_that_lie(field: bytes, saying: str) -> None:
    refused(header(b"sub/liar", field), saying=f"member 'sub/liar' at byte 0: .*{saying}")


def test_large_sizes() -> None:
    for size, field in (
        (9 << 30, b"\x80" + bytes(3) + (9 << 30).to_bytes(8, "big")),
        (0o77777777777, b"77777777777\0"),
    ):
        end = BLOCK + -(-size // BLOCK) * BLOCK
        walker = TarWalker(end)
        walker.feed(ContentOffset(0), header(size=field))
        assert walker.toc().entries[0].size == size
    walker = TarWalker(1 << 50)
    walker.feed(ContentOffset(0), pax(size=b"1000000000000000") + header())
    assert walker.wanted == Extent(ContentOffset(10**15 + 1536), ContentOffset(10**15 + 2048))


def test_a_wrong_checksum_is_told() -> None:
    good = header(b"named")
    refused(
        member(b"first"), good.replace(b"named", b"mamed"), saying="'mamed' at byte 512: the header's checksum is wrong"
    )
    refused(good[:148] + b"zzzzzz\0 " + good[156:], saying="checksum in its header is no number")


def test_the_signed_sum_of_old_tars_is_right_too() -> None:
    block = header("naïve".encode())
    unsigned = int(block[148:154], 8)
    signed = block[:148] + b"%06o\0 " % (unsigned - 2 * 256) + block[156:]
    assert only(signed).path == "naïve"
    refused(block[:148] + b"%06o\0 " % (unsigned - 256) + block[156:], saying="checksum")


@settings(deadline=None)
@given(st.binary(min_size=512, max_size=512), st.sampled_from([GNU, USTAR, V7]))
def test_sums_are_those_of_tarfile(noise: bytes, magic: bytes) -> None:
    noise = summed(noise[:257] + magic + noise[265:])
    (unsigned, _) = tarfile.calc_chksums(noise)  # type: ignore[attr-defined]
    assert int(noise[148:154], 8) == unsigned
    assert "checksum is wrong" not in str(outcome(noise))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"name": b"n" * 100}, "n" * 100),
        ({"name": b"name\0garbage"}, "name"),
        ({"name": b"n", "prefix": b"p" * 155}, "p" * 155 + "/n"),
        ({"name": b"n", "prefix": b"p/q\0garbage"}, "p/q/n"),
        ({"name": b"n", "prefix": b"p", "magic": b"ustar\0xx"}, "p/n"),
        # GNU has times where ustar has the prefix, and so has star, behind a shorter one.
        ({"name": b"n", "prefix": b"14371573622\0", "magic": GNU}, "n"),
        ({"name": b"n", "prefix": b"p", "magic": V7}, "n"),
        ({"name": b"n", "prefix": b"p" * 131 + b"14371573622\0" * 2, "tail": bytes(8) + b"tar\0"}, "p" * 131 + "/n"),
        ({"name": b"./a//b/./c"}, "a/b/c"),
        ({"name": b"../../a"}, "a"),
        ({"name": b"\xff\xfe"}, "\udcff\udcfe"),
        ({"name": "模型".encode()}, "模型"),
        ({"name": b"new\nline"}, "new\nline"),
    ],
)
def test_names(fields: dict[str, bytes], path: str) -> None:
    assert only(header(**fields)).path == path
