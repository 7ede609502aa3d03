"""Sources: the files a person names -> their text, block by block, however they are packed.

gzip and Zstandard are told by their first bytes, UTF-8 and UTF-16 by their marks; names decide
nothing here. A file that is not what it says is one error with its line.
"""

import codecs
import gzip
import io
import re
import stat
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from device_runtime.errors import CorpusError

BLOCK = 1 << 20  # bytes, or characters, that are held at a time
HEAD = 1 << 16  # of these, what is looked at to tell what a file holds
LONGEST = 1 << 24  # characters of one line or one record: a message is shorter
STANDARD_INPUT = "-"
# in a folder of several files, the one that holds the messages: Telegram's export, WhatsApp's
EXPORTS = ("result.json", "_chat.txt")
_GZIP, _ZSTANDARD, _SKIPPED_FRAME = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\x2a\x4d\x18"
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive or a spreadsheet",
    b"BZh": "packed with bzip2",
    b"\xfd7zXZ\x00": "packed with xz",
    b"7z\xbc\xaf": "a 7z archive",
    b"Rar!": "a rar archive",
    b"SQLite format 3\x00": "an SQLite database",
    b"\xd0\xcf\x11\xe0": "an old Office document",
}
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

Progress = Callable[[int], None]  # told how many more bytes were read


@dataclass(frozen=True)
class Source:
    """One file to read; `size` is 0 for what has none, such as a pipe."""

    path: Path
    size: int
    regular: bool  # can be opened twice

    @property
    def name(self) -> str:
        """As errors and reports name it."""
        return "standard input" if str(self.path) == STANDARD_INPUT else str(self.path)


def listed(paths: Iterable[str | Path], suffix: Callable[[Path], str]) -> list[Source]:
    """The files that these paths name: a folder stands for its parts, in the order of their names.

    `suffix` says what a file's name says of its format, "" if nothing; parts must all say the same.
    Hidden files, and those that begin with `_` as Spark's do, are no parts. Raises CorpusError for
    a path that is not there or is named twice, and for a folder without parts or with other things.
    """
    sources: list[Source] = []
    for path in map(Path, paths):
        if str(path) != STANDARD_INPUT and path.is_dir():
            sources += [_source(part) for part in _parts(path, suffix)]
        else:
            sources.append(_source(path))
    if not sources:
        raise CorpusError("data import", "no file to read", "name a file, a folder of parts, or -")
    seen: set[Path] = set()
    for source in sources:
        real = source.path if source.name != str(source.path) else source.path.resolve()
        if real in seen:
            raise CorpusError(source.name, "is named twice", "name each file once")
        seen.add(real)
    return sources


def _source(path: Path) -> Source:
    if str(path) == STANDARD_INPUT:
        return Source(path, 0, regular=False)
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            path.open("rb").close()
    except FileNotFoundError:
        raise CorpusError(path, "no such file", "check the path") from None
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None
    regular = stat.S_ISREG(status.st_mode)
    return Source(path, status.st_size if regular else 0, regular)


def _parts(folder: Path, suffix: Callable[[Path], str]) -> list[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise _unreadable(folder, error) from None
    for name in EXPORTS:
        if folder / name in entries:
            return [folder / name]
    parts = [entry for entry in entries if not entry.name.startswith((".", "_"))]
    if not parts:
        raise CorpusError(
            folder, "is a folder without a file to read", "name a file, or a folder of parts"
        )
    for part in parts:
        if part.is_dir() or not suffix(part):
            raise CorpusError(
                folder,
                f"expected parts of one format, found {part.name!r} among them",
                "name the files one by one",
            )
    kinds = sorted({suffix(part) for part in parts})
    if len(kinds) > 1:
        raise CorpusError(
            folder,
            f"expected parts of one format, found {', '.join(kinds)}",
            "name the files one by one",
        )
    return parts


def _unreadable(where: object, error: Exception) -> CorpusError:
    reason = getattr(error, "strerror", None) or "not a path"
    return CorpusError(where, f"cannot be read ({reason})", "check the path and its permissions")


def content(source: Source, progress: Progress) -> Iterator[bytes]:
    """The bytes of a source, unpacked. Raises CorpusError for what is damaged or cannot be read."""
    packed = _raw(source, progress)
    head, packed = peeked(packed, 8)
    if head.startswith(_GZIP):
        return _unzipped(source, packed)
    if head.startswith(_ZSTANDARD) or (head[1:4] == _SKIPPED_FRAME and head[:1] >= b"\x50"):
        return _zstandard(source, packed)
    for mark, what in _ARCHIVES.items():
        if head.startswith(mark[:8]):
            raise CorpusError(
                source.name,
                f"expected messages as text or Parquet, found {what}",
                "unpack it, or save it as CSV",
            )
    return packed


def _raw(source: Source, progress: Progress) -> Iterator[bytes]:
    try:
        with _opened(source) as file:
            while block := file.read1(BLOCK) if hasattr(file, "read1") else file.read(BLOCK):
                progress(len(block))
                yield block
    except OSError as error:
        raise _unreadable(source.name, error) from None


def _opened(source: Source) -> IO[bytes]:
    if str(source.path) != STANDARD_INPUT:
        return open(source.path, "rb")
    return io.BufferedReader(io.FileIO(0, closefd=False))


def peeked(blocks: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first bytes, at least `size` if there are so many, and the blocks with them."""
    head = b""
    while len(head) < size and (block := next(blocks, b"")):
        head += block
    return head, _chained(head, blocks)


def _chained(head: bytes, blocks: Iterator[bytes]) -> Iterator[bytes]:
    if head:
        yield head
    yield from blocks


class _Pipe(io.RawIOBase):
    """Blocks as a file that can be read once."""

    def __init__(self, blocks: Iterator[bytes]):
        self._blocks, self._rest = blocks, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        self._rest = self._rest or next(self._blocks, b"")
        part, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)


def _unzipped(source: Source, packed: Iterator[bytes]) -> Iterator[bytes]:
    try:
        with gzip.GzipFile(fileobj=io.BufferedReader(_Pipe(packed), BLOCK)) as file:
            while block := file.read(BLOCK):
                yield block
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise _damaged(source, "gzip") from None


def _zstandard(source: Source, packed: Iterator[bytes]) -> Iterator[bytes]:
    import zstandard

    # as much as the program that packed it may ask for with its own default limit
    unpacker = zstandard.ZstdDecompressor(max_window_size=1 << 27)
    frame = unpacker.decompressobj(write_size=BLOCK)
    begun = False
    try:
        for block in packed:
            while block:
                # in small pieces: a block of little entropy would unpack to all the memory there is
                piece, block = block[: 1 << 14], block[1 << 14 :]
                while piece:
                    begun = True
                    if unpacked := frame.decompress(piece):
                        yield unpacked
                    piece = b""
                    if frame.eof:
                        piece = frame.unused_data
                        frame, begun = unpacker.decompressobj(write_size=BLOCK), False
    except zstandard.ZstdError:
        raise _damaged(source, "Zstandard") from None
    if begun:
        raise _damaged(source, "Zstandard")


def _damaged(source: Source, packing: str) -> CorpusError:
    return CorpusError(
        source.name,
        f"expected a whole {packing} file, found one that is cut short or damaged",
        "fetch or pack it again",
    )


def require_encoding(name: str | None) -> None:
    """Raises CorpusError for a name that is not a text encoding."""
    try:
        known = name is None or "".encode(name) is not None
    except (LookupError, ValueError):
        known = False
    if not known:
        raise CorpusError(
            "--encoding",
            "expected the name of an encoding, found none of that name",
            "give one such as utf-8, utf-16, latin-1 or cp1252",
        )


def text_blocks(
    source: Source, blocks: Iterator[bytes], encoding: str | None = None
) -> Iterator[str]:
    """The text of a source without its mark, in blocks. UTF-8 without a mark or an `encoding`.

    Raises CorpusError with the line for bytes that are not text in that encoding.
    """
    head, blocks = peeked(blocks, HEAD)
    encoding = _encoding(source, head, encoding)
    decoder = codecs.getincrementaldecoder(encoding)()
    line, begun = 1, False
    try:
        for block in _and_the_end(blocks):
            text = decoder.decode(block, final=not block)
            text = text if begun else text.removeprefix("\ufeff")
            if text:
                begun = True
                yield text
                line += line_ends(text)
    except UnicodeDecodeError as error:
        # what it had not decoded yet begins with what it kept of the block before
        line += line_ends(error.object[: error.start].decode(encoding, "ignore"))
        odd = error.object[error.start : error.start + 1].hex()
        raise CorpusError(
            f"{source.name}:{line}",
            f"expected {encoding.upper()} text, found the byte 0x{odd}",
            "name its encoding with --encoding (cp1252, latin-1, ...)",
        ) from None


def _and_the_end(blocks: Iterator[bytes]) -> Iterator[bytes]:
    yield from (block for block in blocks if block)
    yield b""


def _encoding(source: Source, head: bytes, named: str | None) -> str:
    marked = next((name for mark, name in _MARKS if head.startswith(mark)), None)
    if marked and named and not codecs.lookup(named).name.startswith(marked):
        raise CorpusError(
            source.name,
            f"has the mark of {marked.upper()}, but --encoding names another",
            "leave out --encoding",
        )
    if named or marked:
        return marked or str(named)
    if head[:HEAD].count(0) * 4 > len(head[:HEAD]):
        raise CorpusError(
            f"{source.name}:1",
            "expected UTF-8 text, found NUL bytes throughout",
            "if it is UTF-16 without its mark, name --encoding utf-16-le or utf-16-be",
        )
    return "utf-8"


def line_ends(text: str) -> int:
    """How many lines end in a text: by CR, LF or both."""
    ends = text.count("\n")
    return ends + text.count("\r") - text.count("\r\n") if "\r" in text else ends


def lines(source: Source, blocks: Iterable[str]) -> Iterator[str]:
    """The lines of a text with their ends: LF or CR LF where the first line ends so, else CR too.

    Raises CorpusError for a line that is longer than LONGEST.
    """
    rest, number, only_lf = "", 1, False
    for block in blocks:
        rest += block
        only_lf = only_lf or (number == 1 and _first_end(rest) == "\n")
        complete = rest.rfind("\n") + 1
        if not only_lf:
            complete = max(complete, rest.rfind("\r", 0, -1) + 1)  # a last CR may lack its LF
        if complete:
            yield from io.StringIO(rest[:complete], newline="\n" if only_lf else "")
            number += line_ends(rest[:complete])
            rest = rest[complete:]
        if len(rest) > LONGEST:
            raise CorpusError(
                f"{source.name}:{number}",
                f"expected a line's end within {LONGEST:,} characters, found none",
                "give one message a line",
            )
    yield from io.StringIO(rest, newline="\n" if only_lf else "")


def _first_end(text: str) -> str:
    """The last character of the end of a text's first line; "" if that cannot be told yet."""
    match = re.search(r"\r\n|\n|\r(?=[^\n])", text)
    return match.group()[-1] if match else ""
