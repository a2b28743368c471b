"""Text at the border: UTF-8 or refused."""

import sys
from pathlib import Path

from arbiters.errors import InvalidError, NotFoundError


def utf8(text: str) -> bytes:
    """The text's bytes.

    Raises:
        InvalidError: a lone surrogate stands in it, which no UTF-8 can carry.
    """
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InvalidError(
            f"character {error.start} of the text is the lone surrogate"
            f" {text[error.start]!r}, which UTF-8 cannot carry: repair the text where it was decoded"
        ) from None


def text_of(data: bytes, name: str) -> str:
    """`data` as text, nothing changed: byte order mark and line ends stay.

    Raises:
        InvalidError: it is not UTF-8; says where.
    """
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidError(
            f"{name} is not UTF-8 ({error.reason} {data[error.start]:#04x} at byte {error.start}):"
            " convert it first, for instance with iconv"
        ) from None


def read_text(path: Path) -> str:
    """A file's text; of standard input, where the path is `-`.

    Raises:
        NotFoundError: no such file.
        InvalidError: it is a directory, cannot be read, or is not UTF-8.
    """
    if str(path) == "-":
        return text_of(sys.stdin.buffer.read(), "standard input")
    try:
        return text_of(path.read_bytes(), repr(str(path)))
    except FileNotFoundError:
        raise NotFoundError(f"no file {str(path)!r}") from None
    except OSError as error:
        raise InvalidError(f"cannot read {str(path)!r}: {error.strerror}") from error
