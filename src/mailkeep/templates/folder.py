"""A catalog folder on disk, read whole and only once, with every fault that can be told from the files alone.

Follows symbolic links only while they stay inside the folder (a Kubernetes volume is made of such links),
opens nothing but regular files, and skips names that begin with a dot. Never reads on after a bound is
passed. Called by `catalog`.
"""

import stat
from pathlib import Path
from typing import Final

import msgspec

MAX_FILE_BYTES: Final = 256 * 1024
"""One template file; large enough for any mail, since mail programs cut html at about 100 KB."""
MAX_FILES: Final = 10_000
"""Files and folders of a catalog; bounds the time of a start."""
MAX_CATALOG_BYTES: Final = 64 * 1024 * 1024
"""The whole catalog, which is held in memory once per locale that uses it."""
MAX_DEPTH: Final = 3
"""`<template_id>/<locale>/<part>`."""


class CatalogProblem(msgspec.Struct, frozen=True, order=True):
    """One fault of a catalog: the file or folder, relative to the catalog, and what to change there."""

    path: str
    message: str


class Folder(msgspec.Struct, frozen=True):
    """What was read: texts by relative path, the folders among them, and what was wrong."""

    texts: dict[str, str]
    folders: tuple[str, ...]
    problems: tuple[CatalogProblem, ...]


def read_folder(root: Path) -> Folder:
    """Read every file below `root`. Raises nothing: what can't be read is a problem of the result."""
    reader = _Reader(root)
    reader.read_directory(root, "", MAX_DEPTH)
    return Folder(reader.texts, tuple(reader.folders), tuple(reader.problems))


class _Full(Exception):  # noqa: N818 - it is a signal to stop, not an error
    """A bound of the whole catalog is passed."""


class _Reader:
    """Walks the folder and remembers what it saw."""

    __slots__ = ("bytes_left", "entries_left", "folders", "problems", "real_root", "root", "texts")

    def __init__(self, root: Path) -> None:
        self.root, self.real_root = root, root.resolve()
        self.texts: dict[str, str] = {}
        self.folders: list[str] = []
        self.problems: list[CatalogProblem] = []
        self.entries_left, self.bytes_left = MAX_FILES, MAX_CATALOG_BYTES

    def read_directory(self, directory: Path, path: str, depth_left: int) -> None:
        try:
            names = sorted(entry.name for entry in directory.iterdir())
        except OSError as fault:
            self._report(path or str(self.root), f"can't be read as a folder: {fault.strerror}")
            return
        for name in names:
            if name.startswith("."):
                continue
            try:
                self._read_entry(directory / name, f"{path}/{name}".lstrip("/"), depth_left)
            except _Full:
                return
            except (
                OSError,
                RuntimeError,
            ) as fault:  # resolve() of a link loop raises RuntimeError before 3.13
                self._report(
                    f"{path}/{name}".lstrip("/"), f"can't be read: {getattr(fault, 'strerror', fault)}"
                )

    def _read_entry(self, entry: Path, path: str, depth_left: int) -> None:
        self._spend(path, entries=1)
        real = entry.resolve(strict=True)
        if not real.is_relative_to(self.real_root):
            self._report(path, "is a link that leaves the catalog; copy the file into it")
            return
        mode = real.stat().st_mode
        if stat.S_ISREG(mode):
            self._read_file(real, path)
        elif not stat.S_ISDIR(mode):
            self._report(path, "is neither a regular file nor a folder; remove it")
        elif depth_left == 1:
            self._report(path, "is a folder too deep; a catalog is <template_id>/<locale>/<file>")
        else:
            self.folders.append(path)
            self.read_directory(entry, path, depth_left - 1)

    def _read_file(self, file: Path, path: str) -> None:
        with file.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            self._report(path, f"is larger than {MAX_FILE_BYTES} bytes; make it smaller")
            return
        self._spend(path, size_bytes=len(content))
        try:
            self.texts[path] = content.decode("utf-8-sig").replace("\r\n", "\n")
        except UnicodeDecodeError as fault:
            self._report(path, f"is not UTF-8 at byte {fault.start}; save it as UTF-8")

    def _spend(self, path: str, *, entries: int = 0, size_bytes: int = 0) -> None:
        self.entries_left -= entries
        self.bytes_left -= size_bytes
        if self.entries_left < 0:
            self._report(path, f"is beyond the {MAX_FILES} files and folders a catalog may have")
            raise _Full
        if self.bytes_left < 0:
            self._report(path, f"takes the catalog beyond {MAX_CATALOG_BYTES} bytes")
            raise _Full

    def _report(self, path: str, message: str) -> None:
        self.problems.append(CatalogProblem(path, message))
