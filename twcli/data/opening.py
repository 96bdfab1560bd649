"""A file's bytes as UTF-8 text without a byte order mark, whatever it is packed by and whichever
Unicode encoding it has; files of other kinds are recognised by their first bytes and named.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
from pathlib import Path
from typing import Any

from twcli.errors import UserError

PARQUET = b"PAR1"
PACKED = (".gz", ".zst", ".bz2", ".xz")
GZIP, ZSTANDARD, XZ = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\x00"
BZIP2 = b"1AY&SY"  # behind "BZh" and a digit
# JSON, a pointer of Git LFS or a page: a packed file that was unpacked on its way, or another one
# under its name
KEPT_NAME = (b"{", b"[", b"version ", b"<")
HEAD = 265  # bytes that tell what a file is; a tar archive says so at 257
# The longer mark first: UTF-32's begins with UTF-16's.
MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
# What JSON begins with, where the file has no mark.
UNMARKED = tuple(
    (first.encode(encoding), encoding)
    for encoding in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
    for first in "{["
)
PAGE = "a web page", "download the file itself, not the page that shows it"
# First bytes of files that hold no text, what they are, and what to do.
OTHER = (
    (b"PK\x03\x04", "a zip archive or a spreadsheet", "unpack it, or save the sheet as CSV"),
    (b"\xd0\xcf\x11\xe0", "a document of an office program", "save the sheet as CSV"),
    (b"Rar!", "a RAR archive", "unpack it"),
    (b"7z\xbc\xaf", "a 7z archive", "unpack it"),
    (b"ARROW1", "an Arrow (Feather) file", "write it as Parquet or JSON lines"),
    (b"\xff\xff\xff\xff", "an Arrow stream", "give the `datasets` folder that it lies in"),
    (b"SQLite format 3", "an SQLite database", "write its table as CSV or JSON lines"),
    (b"\x89HDF", "an HDF5 file", "give the records"),
    (b"Obj\x01", "an Avro file", "write it as Parquet or JSON lines"),
    (b"\x80\x04\x95", "a Python pickle, which may run code", "write it as JSON lines"),
    (b"\x80\x05\x95", "a Python pickle, which may run code", "write it as JSON lines"),
    (b"%PDF", "a PDF document", "write its records as JSON lines"),
    (
        b"version https://git-lfs",
        "a pointer of Git LFS, which stands for the file",
        "fetch it with `git lfs pull`",
    ),
    (b"<!doctype html", *PAGE),
    (b"<html", *PAGE),
    (b"<?xml", "XML", "write it as JSON lines"),
    (b"{\\rtf", "a document of an office program", "save its records as JSON lines"),
    (b"GGUF", "a model in a GGUF file", "give it as --model, and records as --data"),
    (GZIP, "compressed twice", "unpack it once"),
)
# Bytes that no text begins with: control characters but white space and NUL, which stands where a
# file was not written.
NO_TEXT = frozenset(range(1, 32)) - frozenset(b"\t\n\f\r\x1b")
BEGINNING = 16  # bytes


def opened(file: Path) -> Any:
    """The file's text as a buffered stream of UTF-8, unpacked if its suffix or its first bytes say
    so. What is broken within it raises OSError, EOFError or zlib.error while it is read.

    Raises:
        OSError: the file cannot be opened.
        UserError: it is of a kind that is not read, or what unpacks it is not installed.
    """
    stream = _unpacked(file)
    try:
        return _as_utf8(stream, file)
    except BaseException:
        stream.close()
        raise


def _unpacked(file: Path) -> Any:
    """The file's bytes as a stream, unpacked where it is compressed, whatever its name."""
    with file.open("rb") as stream:
        head = stream.read(4 + len(BZIP2))
    if head.startswith(KEPT_NAME):
        suffix = ""
    else:
        suffix = file.suffix.lower()
    if suffix == ".gz" or head.startswith(GZIP):
        return gzip.open(file, "rb")
    if suffix == ".bz2" or (head.startswith(b"BZh") and head[4:] == BZIP2):
        return bz2.open(file, "rb")
    if suffix == ".xz" or head.startswith(XZ):
        return io.BufferedReader(_Checked(lzma.open(file, "rb"), lzma.LZMAError))
    if suffix != ".zst" and not head.startswith(ZSTANDARD):
        return file.open("rb")
    try:
        import zstandard
    except ImportError as error:
        raise UserError(
            f"{file}: compressed with Zstandard; needs pip install 'twcli-cvae[zstd]'"
        ) from error
    unpacked = zstandard.ZstdDecompressor().stream_reader(
        file.open("rb"), read_across_frames=True, closefd=True
    )
    return io.BufferedReader(_Checked(unpacked, zstandard.ZstdError))


class _Checked(io.RawIOBase):
    """An unpacked stream; errors in it are raised as OSError, as gzip does."""

    def __init__(self, stream: Any, broken: type[Exception]) -> None:
        self._broken = broken
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            return int(self._stream.readinto(buffer))
        except self._broken as error:
            raise OSError(str(error)) from error

    def close(self) -> None:
        self._stream.close()
        super().close()


def _as_utf8(stream: Any, file: Path) -> Any:
    head = stream.peek(HEAD)[:HEAD]
    for mark, encoding in MARKS:
        if head.startswith(mark):
            stream.read(len(mark))
            if encoding == "utf-8":
                return stream
            return _recoded(stream, encoding)
    for first, encoding in UNMARKED:
        if head.startswith(first):
            return _recoded(stream, encoding)
    for beginning, what, then in OTHER:
        begin = head.lstrip()[: len(beginning)]
        if begin == beginning or (begin.isascii() and begin.lower() == beginning):
            raise UserError(f"{file}: is {what}; {then}")
    if head[257:262] == b"ustar":
        raise UserError(f"{file}: is a tar archive; unpack it and give its files")
    if head[5:8] == bytes(3) and head[8:10] == b'{"':
        raise UserError(f"{file}: is a file of weights (safetensors); give records as --data")
    if not head.startswith(PARQUET) and not NO_TEXT.isdisjoint(head[:BEGINNING]):
        raise UserError(
            f"{file}: holds no text, it begins with the bytes {head[:4].hex(' ')}; give JSON "
            "lines, JSON, CSV or Parquet, packed or not by gzip, bzip2, xz or Zstandard"
        )
    return stream


def _recoded(stream: Any, encoding: str) -> io.BufferedReader:
    """The stream of bytes in that encoding as one of UTF-8, decoded piece by piece while it is
    read.
    """
    return io.BufferedReader(_Recoded(stream, encoding))


class _Recoded(io.RawIOBase):
    """Text of another Unicode encoding as UTF-8; what is none raises OSError."""

    def __init__(self, stream: Any, encoding: str) -> None:
        decoder_class = codecs.getincrementaldecoder(encoding)
        self._stream = stream
        self._encoding = encoding
        self._decoder = decoder_class()
        self._left = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """As `io.RawIOBase.readinto`: bytes of UTF-8, 0 at the end.

        Raises:
            OSError: what follows is not in the encoding that the file begins in.
        """
        ended = False
        while not self._left and not ended:
            data = self._stream.read(io.DEFAULT_BUFFER_SIZE)
            ended = not data
            try:
                text = self._decoder.decode(data, final=ended)
                self._left = text.encode()
            except UnicodeError as error:
                raise OSError(
                    f"it begins as {self._encoding.upper()}, and what follows is none; save it as "
                    "UTF-8"
                ) from error
        size = min(len(buffer), len(self._left))
        buffer[:size] = self._left[:size]
        self._left = self._left[size:]
        return size

    def close(self) -> None:
        self._stream.close()
        super().close()
