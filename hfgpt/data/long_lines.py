"""One JSON object that is too long to hold in memory, read as it comes.

In:  the bytes of a line of .jsonl, a chunk at a time, and the name of the column.
Out: the text of that column, a fragment at a time; the memory is that of a few chunks.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator

# What a JSON string may hold up to its closing quote. The two halves of a surrogate pair stay together.
STRING = re.compile(
    r"""(?:
      [^"\\]++
    | \\[^u]
    | \\u(?![dD][89abAB])[0-9a-fA-F]{4}
    | \\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=.{6}))
    )*+""",
    re.VERBOSE | re.DOTALL,
)

SPACE = re.compile(r"[ \t\r\n]*+")

OTHER = re.compile(r'[^"\[\]{},]++')  # of a value that is not read: up to what may end it

KEY_LIMIT = 1 << 16  # characters


class NotJson(ValueError):
    """The line is not a JSON object; the message says why."""


class WrongType(Exception):
    """The column holds something else than text; the message names its type."""


class LongLine:
    """Reads one line.

    Args:
        chunks: its bytes in UTF-8, without the newline.
        column: whose text is wanted.

    After :meth:`fragments` has ended, `keys` holds the keys of the object.
    """

    def __init__(self, chunks: Iterator[bytes], column: str) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._chunks, self._column = chunks, column
        self._text, self._at = "", 0
        self.keys: list[str] = []

    def fragments(self) -> Iterator[str]:
        """The text of the column in order, in fragments of any length.

        Raises:
            NotJson: the line is not a JSON object.
            WrongType: the column's value is neither text nor null.
            UnicodeDecodeError: the line is not UTF-8.
        """
        self._expect("{")
        while True:
            self._expect('"')
            key = self._key()
            self.keys.append(key)
            self._expect(":")
            if key != self._column:
                self._skip_value()
            elif self._peek() == '"':
                self._at += 1
                yield from self._string()
            else:
                self._check_null()
            end = self._next()
            if end == "}":
                break
            if end != ",":
                raise NotJson(f"',' or '}}' expected, not {end!r}")
        if self._peek():
            raise NotJson("text behind the object")

    def _more(self) -> bool:
        """Append the next chunk, and forget what has been read; False at the end."""
        raw = next(self._chunks, None)
        if raw is None:
            self._decoder.decode(b"", final=True)
            return False
        self._text, self._at = self._text[self._at :] + self._decoder.decode(raw), 0
        return True

    def _peek(self) -> str:
        """The next character that is not a space; "" at the end."""
        while True:
            space = SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _next(self) -> str:
        character = self._peek()
        self._at += 1
        return character

    def _expect(self, wanted: str) -> None:
        if (character := self._next()) != wanted:
            raise NotJson(f"{wanted!r} expected, not {character!r}")

    def _raw_string(self) -> Iterator[str]:
        """What stands between two quotes, as it is spelled; the place is behind the first of them."""
        while True:
            match = STRING.match(self._text, self._at)
            assert match, "the pattern matches the empty text too"
            if match.end() > self._at:
                yield match[0]
                self._at = match.end()
            if self._text[self._at : self._at + 1] == '"':
                self._at += 1
                return
            if len(self._text) - self._at > 12:  # longer than any escape: it will not become one
                raise NotJson("invalid escape in a string")
            if not self._more():
                raise NotJson("a string without an end")

    def _string(self) -> Iterator[str]:
        for raw in self._raw_string():
            try:
                text = str(json.loads(f'"{raw}"'))
            except ValueError as error:
                raise NotJson(str(error)) from None
            yield whole_characters(text) if "\\u" in raw else text

    def _key(self) -> str:
        key = ""
        for text in self._string():
            key += text
            if len(key) > KEY_LIMIT:
                raise NotJson("a key of more than 65,536 characters")
        return key

    def _skip_value(self) -> None:
        depth = 0
        while True:
            character = self._peek()
            if not character:
                raise NotJson("an object without an end")
            if character in ",}" and not depth:
                return
            self._at += 1
            if character == '"':
                for _raw in self._raw_string():
                    pass
            elif character in "[{":
                depth += 1
            elif character in "]}":
                depth -= 1
            elif match := OTHER.match(self._text, self._at):
                self._at = match.end()

    def _check_null(self) -> None:
        character = self._peek()
        if character != "n":
            raise WrongType({"{": "dict", "[": "list", "t": "bool", "f": "bool"}.get(character, "number"))
        self._skip_value()


def whole_characters(text: str) -> str:
    """JSON can spell half a surrogate pair, which is not a character: such halves are replaced."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
