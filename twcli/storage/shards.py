"""The finished shards of a file that is being written: they let `precompute` and `sample --out`
resume after a crash or a kill.

While the file F is being written, `F.lock` and the folder `F.parts/` are next to it:

    manifest.jsonl       the header (what the shards belong to), then one line a shard: rows and
                         sha256; at last that F is there
    <start>-<stop>.*     the bytes of rows start to stop - 1, never changed once there
    owner.json           who holds the lock
    *.tmp                a write that was cut off; swept up by the next writer

A file appears under its name only when its bytes are on the disk. No HDF5 here: a file
that HDF5 has open for writing is lost when the process is killed, and a full disk must
surface as a plain OSError.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from twcli.errors import UserError, WorkFailed, first_difference
from twcli.storage.durable import sync_folder, write_all, write_durably

MANIFEST, OWNER = "manifest.jsonl", "owner.json"
PUBLISHED = {"published": True}
# longest wait between taking the lock and writing the holder's name; only a busy disk needs it
NAME_SECONDS = 2.0
WRONG_PLACE = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ELOOP,
    # nothing can be written there, so the user must name another place
    errno.ENAMETOOLONG,
    errno.EEXIST,
}


@contextmanager
def reporting(path: Path, doing: str) -> Iterator[None]:
    """Turns an OSError into one line: UserError if the place is wrong,
    WorkFailed if the disk failed.
    """
    try:
        yield
    except OSError as error:
        reason = (os.strerror(error.errno) if error.errno else str(error)).lower()
        if error.errno in WRONG_PLACE:
            raise UserError(f"{path}: cannot {doing}: {reason}") from error
        raise WorkFailed(
            f"{path}: cannot {doing}: {reason}; finished shards are kept; run the same "
            "command again to resume"
        ) from error


def check_place(path: Path) -> None:
    """Raises UserError where no file can be made at `path`, WorkFailed where the disk is full."""
    with reporting(path, "write there"):
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        if not path.parent.is_dir():
            raise UserError(f"{path}: there is no folder {path.parent}; make it first")
        with tempfile.TemporaryFile(dir=path.parent):
            pass  # permission bits do not reveal a read-only or a special file system


class Shards:
    """The folder `<target>.parts/` and the lock that makes its holder the only writer.

    Args:
        target: the file to write.
        header: JSON-ready dict that identifies what the shards belong to; its `fingerprint` says
            what they were computed from. Shards with another header are discarded.
        rows: number of rows.
        what: name of the file type, used in messages.
        suffix: of a shard's name.
        size: expected bytes of a shard of these rows, if known; a shard of another size is damaged.

    Attributes:
        damaged: row ranges whose finished shard fails its checksum and must be made again.
        stale: the header of the discarded shards, None if none were discarded.
        published: whether an earlier call wrote the file but was stopped before it removed its
            shards.
    """

    def __init__(
        self,
        target: Path,
        header: dict[str, Any],
        rows: int,
        *,
        what: str,
        suffix: str,
        size: Callable[[range], int] | None = None,
    ) -> None:
        self.target = target
        self.header = header
        self.rows = rows
        self.what = what
        self.suffix = suffix
        self.size = size
        self.folder = self.folder_of(target)
        self.damaged: list[range] = []
        self.stale: dict[str, Any] | None = None
        self.published = False
        self._ours = re.compile(rf"manifest\.jsonl|owner\.json|\d+-\d+{re.escape(suffix)}|.*\.tmp")
        self._shards: dict[range, str] = {}
        self._lock = FileLock(f"{target}.lock")

    @staticmethod
    def folder_of(target: Path) -> Path:
        """The folder that holds a file's shards until it is complete."""
        return Path(f"{target}.parts")

    def open(self) -> None:
        """Takes the lock, keeps the valid shards and discards those of another header.

        Raises:
            UserError: another process is writing, the place is not writable,
                or the folder is not ours.
            WorkFailed: the disk is full.
        """
        with reporting(self.target, "write there"):
            self._acquire()
            try:
                self._load()
            except BaseException:
                self._lock.release()
                raise

    def close(self) -> None:
        """Releases the lock; keeps finished shards, removes an empty folder."""
        try:
            with suppress(OSError):
                (self.folder / OWNER).unlink(missing_ok=True)
                if not self._shards:
                    self.remove()
        finally:
            self._lock.release()

    @property
    def done(self) -> list[range]:
        """Row ranges that are finished, ascending; `missing` has what lies between them."""
        return sorted(self._shards, key=lambda rows: rows.start)

    def missing(self, most: int) -> list[range]:
        """Ranges of at most `most` rows that are not finished, ascending."""
        gaps = []
        reached = 0
        for rows in self.done:
            gap = range(reached, rows.start)
            gaps += blocks(gap, most)
            reached = rows.stop
        last = range(reached, self.rows)
        return [*gaps, *blocks(last, most)]

    def notes(self) -> list[str]:
        """What the user should know about shards of an earlier call."""
        notes = [
            f"{self.folder}: the finished shard of {named(rows)} is damaged and is made again"
            for rows in self.damaged
        ]
        if self.stale is not None:
            before = self.stale.get("fingerprint")
            if isinstance(before, dict):
                changed = first_difference(before, self.header["fingerprint"])
            else:
                changed = None
            why = f"{changed[0]} differs" if changed else "the rows differ"
            notes.append(f"{self.folder}: an unfinished {self.what} was discarded: {why}")
        return notes

    def check_missing(self, rows: range) -> None:
        """Raises ValueError unless `rows` are consecutive rows, none of them finished."""
        inside = rows.step == 1 and 0 <= rows.start < rows.stop <= self.rows
        if not inside or any(
            rows.start < done.stop and done.start < rows.stop for done in self._shards
        ):
            raise ValueError(f"{rows} is not a range of missing rows")

    def add(self, rows: range, data: bytes) -> None:
        """Stores one shard durably, and notes it in the manifest with its checksum.

        Raises:
            OSError: the disk is full or the folder cannot be written.
        """
        # The manifest line is written first: after a kill in between, the shard counts as missing.
        # A shard without a line could not be used.
        digest = hashlib.sha256(data).hexdigest()
        self._note({"rows": [rows.start, rows.stop], "sha256": digest})
        write_durably(self._file(rows), data)
        self._shards[rows] = digest

    def read(self, rows: range) -> bytes | None:
        """One finished shard's bytes; None if the file is gone or its bytes are not what was
        written.
        """
        with suppress(FileNotFoundError):
            data = self._file(rows).read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            if digest == self._shards[rows]:
                return data
        return None

    def all(self) -> Iterator[bytes]:
        """Every finished shard, by ascending rows. Raises WorkFailed if one is no longer what was
        written.
        """
        for rows in self.done:
            data = self.read(rows)
            if data is None:
                raise WorkFailed(
                    f"{self.folder}: the finished shard of {named(rows)} was damaged meanwhile; "
                    "run the same command again to make it again"
                )
            yield data

    @contextmanager
    def publishing(self, doing: str) -> Iterator[Path]:
        """A file to fill and to sync. If the block succeeds, it becomes the target and the shards
        are removed.

        Raises:
            UserError, WorkFailed: as `reporting`.
        """
        temp = self.folder / "publish.tmp"
        with reporting(self.target, doing):
            try:
                yield temp
                os.replace(temp, self.target)
            finally:
                temp.unlink(missing_ok=True)
            sync_folder(self.target.parent)
            with suppress(OSError):  # only a call after a kill needs it; the file is there
                self._note(PUBLISHED)
            self.remove()

    def remove(self) -> None:
        """Removes our files and the folder. Raises OSError."""
        if not self.folder.is_dir():
            return
        # the manifest is removed last: it shows that the other files may be gone
        for file in sorted(self._files(), key=lambda file: file.name == MANIFEST):
            file.unlink()
        self.folder.rmdir()
        self._shards.clear()

    def remove_if_idle(self) -> None:
        """Removes the shards of a run that was killed after publishing the file, if no process
        writes.
        """
        if self.folder.is_dir():
            with suppress(OSError, Timeout, UserError), self._lock.acquire(blocking=False):
                self.remove()

    def _acquire(self) -> None:
        """Takes the folder's lock; raises UserError where another process has it."""
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            raise UserError(
                f"{self.target}: {self._holder()} is writing it; wait for it or end it"
            ) from None

    def _holder(self) -> str:
        """The process that has the lock, for a message."""
        deadline = time.monotonic() + NAME_SECONDS
        while time.monotonic() < deadline:
            with suppress(OSError, ValueError, KeyError, TypeError):
                owner = json.loads((self.folder / OWNER).read_text())
                pid = int(owner["pid"])
                host = str(owner["host"])[:100]
                if host != socket.gethostname() or _alive(pid):
                    return f"process {pid} on {host}"
            # the holder has not written its name yet, or the name of a dead process is still there
            time.sleep(0.02)
        return "another process"

    def _load(self) -> None:
        """Takes over what an earlier call stored, where it is intact and has the same header."""
        with reporting(self.folder, "make this folder"):
            self.folder.mkdir(exist_ok=True)
        files = self._files()
        write_durably(
            self.folder / OWNER, _line({"pid": os.getpid(), "host": socket.gethostname()})
        )
        lines = self._manifest()
        if lines and lines[0] != self.header:
            if isinstance(lines[0], dict):
                self.stale = lines[0]
            else:
                self.stale = {}
        elif lines:
            self.published = PUBLISHED in lines and self.target.exists()
            self._keep_valid(lines[1:])
        keep = {self._file(rows).name for rows in self._shards} | {OWNER, MANIFEST}
        kept = [
            {"rows": [rows.start, rows.stop], "sha256": digest}
            for rows, digest in self._shards.items()
        ] + [PUBLISHED] * self.published
        write_durably(
            self.folder / MANIFEST, b"".join(_line(entry) for entry in [self.header, *kept])
        )
        for file in files:
            if file.name not in keep:
                file.unlink(missing_ok=True)

    def _note(self, entry: dict[str, Any]) -> None:
        """Appends a line to the manifest, durably."""
        with open(self.folder / MANIFEST, "ab", buffering=0) as file:
            # A leading newline, since an earlier append may have been cut off by a full disk.
            write_all(file.fileno(), b"\n" + _line(entry))
            os.fsync(file.fileno())

    def _files(self) -> list[Path]:
        """The folder's files; raises UserError where one is not of a shard folder."""
        files = list(self.folder.iterdir())
        for file in files:
            if not self._ours.fullmatch(file.name) or not file.is_file():
                raise UserError(
                    f"{self.folder}: holds {file.name}, which does not belong to a {self.what}; "
                    "move it away"
                )
        return files

    def _manifest(self) -> list[Any]:
        """The manifest's lines as JSON, the header first, without one that a kill cut off."""
        lines = []
        manifest = self.folder / MANIFEST
        with suppress(FileNotFoundError):
            for text in manifest.read_bytes().splitlines():
                with suppress(ValueError, RecursionError):  # a line that was cut off
                    lines.append(json.loads(text))
        return lines

    def _keep_valid(self, entries: list[Any]) -> None:
        """Takes over the shards that these entries name and whose checksum is right."""
        newest = {}
        for entry in entries:
            with suppress(KeyError, TypeError, ValueError):
                start, stop = map(int, entry["rows"])
                newest[range(start, stop)] = str(entry["sha256"])
        reached = 0
        for rows, digest in sorted(newest.items(), key=lambda item: item[0].start):
            if (
                not (reached <= rows.start < rows.stop <= self.rows)
                or not self._file(rows).exists()
            ):
                continue
            self._shards[rows] = digest
            data = self.read(rows)
            if data is None or (self.size is not None and len(data) != self.size(rows)):
                del self._shards[rows]
                self.damaged.append(rows)
            else:
                reached = rows.stop

    def _file(self, rows: range) -> Path:
        """Where rows are stored."""
        return self.folder / f"{rows.start}-{rows.stop}{self.suffix}"


def blocks(rows: range, most: int) -> list[range]:
    """Consecutive ranges of at most `most` rows."""
    return [rows[start : start + most] for start in range(0, len(rows), most)]


def named(rows: range) -> str:
    """The range as text for messages, such as `rows 0 to 1023`; the last row is included."""
    return f"rows {rows.start} to {rows.stop - 1}"


def _alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except OSError as error:
        return error.errno == errno.EPERM
    return True


def _line(entry: dict[str, Any]) -> bytes:
    """An entry of the manifest as its line."""
    return json.dumps(entry, sort_keys=True).encode() + b"\n"
