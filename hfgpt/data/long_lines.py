"""Streaming reader for a JSON object that is too long for memory.

In:  the bytes of a .jsonl line, in chunks, and the column's name.
Out: the column's text in fragments, in the memory of a few chunks.
"""

import codecs
import json
import re
from collections.abc import Iterator

# The content of a JSON string up to its closing quote, at most a thousand pieces. A surrogate pair is one piece. The
# repetition is not possessive: Python before 3.11.5 matches groups wrongly then (its issue 106052).
STRING = re.compile(
    r"""(?:
      [^"\\]++
    | \\[^u]
    | \\u(?![dD][89abAB])[0-9a-fA-F]{4}
    | \\u[dD][89abAB][0-9a-fA-F]{2}(?:\\u[0-9a-fA-F]{4}|(?=.{6}))
    ){0,1000}""",
    re.VERBOSE | re.DOTALL,
)

SPACE = re.compile(r"[ \t\r\n]*+")
OTHER = re.compile(r'[^"\[\]{},]++')  # a skipped value, up to a character that may end it
KEY_LIMIT = 1 << 16  # characters


class NotJson(ValueError):
    """The line is not a JSON object; the message says why."""


class WrongType(Exception):
    """The column does not hold text; the message names its type."""


class LongLine:
    """Reads one line.

    Args:
        chunks: the line's bytes in UTF-8, without the newline.

    After :meth:`fragments` has ended, `keys` holds the keys of the object.
    """

    def __init__(self, chunks: Iterator[bytes], column: str) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._chunks, self._column = chunks, column
        self._text, self._at = "", 0
        self.keys: list[str] = []

    def fragments(self) -> Iterator[str]:
        """Yield the column's text in order, in fragments of any length.

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
        """Append the next chunk and drop what has been read; False at the end."""
        raw = next(self._chunks, None)
        if raw is None:
            self._decoder.decode(b"", final=True)
            return False
        self._text, self._at = self._text[self._at :] + self._decoder.decode(raw), 0
        return True

    def _peek(self) -> str:
        """Return the next character that is not white space; "" at the end."""
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
        """Yield a string's raw content up to its closing quote; the position is after the opening one."""
        while True:
            match = STRING.match(self._text, self._at)
            assert match, "the pattern matches the empty text too"
            if match.end() > self._at:
                yield match[0]
                self._at = match.end()
                continue
            if self._text[self._at : self._at + 1] == '"':
                self._at += 1
                return
            if len(self._text) - self._at > 12:  # longer than any escape, so it is not an incomplete one
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
    """Replace lone surrogates, which JSON can spell but which are not characters."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
