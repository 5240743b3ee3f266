"""Content digests (OCI image-spec, descriptor.md "Digests"). Only sha256: the one algorithm every registry must support."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from modelvold.errors import InvalidInput

_FORM = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """`sha256:<hex>`, checked. Hashable; `str()` gives the canonical form."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raises InvalidInput unless `text` is exactly `sha256:` and 64 lower-case hexadecimal digits."""
        form = _FORM.fullmatch(text)
        if form is None:
            raise InvalidInput(f"digest {text[:100]!r}: not of the form sha256:<64 hexadecimal digits>")
        return cls(form.group(1))

    @classmethod
    def of(cls, content: bytes | memoryview) -> Digest:
        return cls(hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def short(self) -> str:
        """The first twelve digits, for people."""
        return self.hex[:12]
