r"""containerd's filters: which snapshots a List means. Pure.

    selectors := selector ("," selector)*             all must match
    selector  := fieldpath (operator value)?          without operator: the field is present
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="
    value     := quoted | [^\s,]+
    quoted    := a Go string literal in double quotes; after "~=" also /…/ or |…|

(containerd `pkg/filters`.) Fields are `name`, `parent`, `kind` and `labels.<label>`; another field is never present.
Several filters match when one of them does, and none at all match everything. `~=` searches with Python's `re`, whose
syntax contains what is used of RE2.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from modelvold.errors import InvalidInput
from modelvold.snapshot.record import Info

_SPACE = re.compile(r"\s*")
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"[=!~]+")
_VALUE = re.compile(r"[^\s,]+")
_QUOTED = re.compile(r'"((?:[^"\\\n]|\\.)*)"')
_QUOTED_PATTERN = re.compile(r"/((?:[^/\\\n]|\\.)*)/|\|((?:[^|\\\n]|\\.)*)\|")
_ESCAPE = re.compile(r"\\(?:x([0-9A-Fa-f]{2})|([0-3][0-7]{2})|u([0-9A-Fa-f]{4})|U([0-9A-Fa-f]{8})|([abfnrtv\\'\"]))|\\")
_PLAIN_ESCAPES = dict(zip("abfnrtv\\'\"", "\a\b\f\n\r\t\v\\'\"", strict=True))


@dataclass(frozen=True, slots=True)
class Selector:
    """One condition. `operator` is `==`, `!=`, `~=`, or empty for presence."""

    path: tuple[str, ...]
    operator: str = ""
    value: str = ""

    def matches(self, info: Info) -> bool:
        found = _field(info, self.path)
        if self.operator == "==":
            return found == self.value
        if self.operator == "!=":
            return (found or "") != self.value
        if self.operator == "~=":
            return re.search(self.value, found or "") is not None
        return found is not None


def parse(text: str) -> tuple[Selector, ...]:
    """The selectors of one filter. Raises InvalidInput, naming the place."""
    return _Parser(text).selectors()


def matcher(filters: Iterable[str]) -> Callable[[Info], bool]:
    """A predicate for a List's filters. Raises InvalidInput."""
    wanted = [parse(text) for text in filters]
    if not wanted:
        return lambda _info: True
    if len(wanted) == 1 and wanted[0]:  # as when a layer's target is looked up, among thousands
        first, *others = wanted[0]
        return lambda info: first.matches(info) and all(selector.matches(info) for selector in others)
    return lambda info: any(all(selector.matches(info) for selector in selectors) for selectors in wanted)


def _field(info: Info, path: tuple[str, ...]) -> str | None:
    field, *rest = path
    if field == "labels":
        return info.labels.get(rest[0] if len(rest) == 1 else ".".join(rest)) if rest else None
    if rest or field not in {"name", "parent", "kind"}:
        return None
    return info.kind.value if field == "kind" else info.name if field == "name" else info.parent


class _Parser:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0

    def selectors(self) -> tuple[Selector, ...]:
        if not self._text:
            return ()
        found = [self._selector()]
        while self._skip(","):
            found.append(self._selector())
        if self._at < len(self._text):
            raise self._wrong("expected a comma")
        return tuple(found)

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._skip("."):
            path.append(self._field())
        operator = self._take(_OPERATOR)
        if operator is None:
            return Selector(tuple(path))
        if operator not in ("==", "!=", "~="):
            raise self._wrong(f"unknown operator {operator!r}")
        return Selector(tuple(path), operator, self._value(is_pattern=operator == "~="))

    def _field(self) -> str:
        quoted = self._quoted()
        if quoted is not None:
            return quoted
        field = self._take(_FIELD)
        if field is None:
            raise self._wrong("expected a field")
        return field

    def _value(self, *, is_pattern: bool) -> str:
        value = self._quoted()
        if value is None and is_pattern:
            value = self._quoted_pattern()
        if value is None:
            value = self._take(_VALUE)
        if value is None:
            raise self._wrong("expected a value")
        if is_pattern:
            try:
                re.compile(value)
            except (re.error, RecursionError, OverflowError) as error:
                raise self._wrong(f"the pattern is not valid: {error}") from error
        return value

    def _quoted(self) -> str | None:
        start = self._at
        literal = self._take(_QUOTED)
        if literal is None:
            if self._text.startswith('"', self._at):
                raise self._wrong("the quoted text has no end")
            return None
        try:
            return _unquote(literal[1:-1])
        except (ValueError, OverflowError) as error:
            self._at = start
            raise self._wrong(f"the quoted text is not valid: {error}") from error

    def _quoted_pattern(self) -> str | None:
        # Between these quotes a backslash belongs to the pattern, except before the quote itself.
        literal = self._take(_QUOTED_PATTERN)
        if literal is None:
            return None
        quote = literal[0]
        return literal[1:-1].replace("\\" + quote, quote if quote == "/" else "\\" + quote)

    def _take(self, form: re.Pattern[str]) -> str | None:
        self._skip("")
        found = form.match(self._text, self._at)
        if found is None:
            return None
        self._at = found.end()
        return found.group()

    def _skip(self, mark: str) -> bool:
        space = _SPACE.match(self._text, self._at)
        self._at = space.end() if space else self._at
        if not self._text.startswith(mark, self._at):
            return False
        self._at += len(mark)
        return True

    def _wrong(self, why: str) -> InvalidInput:
        return InvalidInput(f"filter {self._text[:300]!r}, at {self._at}: {why}")


def _unquote(text: str) -> str:
    """Undoes Go's `%q`. Escapes of single bytes may make up one character together, hence the detour over bytes."""
    content, at = bytearray(), 0
    for escape in _ESCAPE.finditer(text):
        content += text[at : escape.start()].encode()
        content += _unescape(escape)
        at = escape.end()
    return (content + text[at:].encode()).decode()


def _unescape(escape: re.Match[str]) -> bytes:
    hexadecimal, octal, short, long, plain = escape.groups()
    if hexadecimal:
        return bytes([int(hexadecimal, 16)])
    if octal:
        return bytes([int(octal, 8)])
    if short or long:
        return chr(int(short or long, 16)).encode()
    if plain:
        return _PLAIN_ESCAPES[plain].encode()
    raise ValueError(f"unknown escape at {escape.start()}")
