"""Chunks of litdata: rows by position, from a folder or fetched into a cache of limited size.

litdata's own reader serves its own order. Asked for rows at random, release 0.2.76 fails on remote sets whose chunks
hold Arrow rows, and where several chunks are read in turn and the cache is smaller than the set, it deletes and fetches
a chunk at each change. So the library does what it is good at, format and transfer; what is kept is decided here.
"""

import json
import mmap
import os
import re
import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from siglightning.data.images import BadSampleError
from siglightning.data.source import digest

OPEN_CHUNKS = 12  # at a time in a process; an order in blocks reads ten
_TRIES = 10  # to fetch a chunk that others throw out again
_LOCKS = 64  # files for all chunks together
_URL = re.compile(r"[a-z0-9]+:")

Rows = Callable[[int], Mapping[str, Any]]
"""From the number of a row in its chunk to the row."""


class ArrowRow(Mapping[str, Any]):
    """A row of an Arrow table, of which only what is asked for is touched."""

    def __init__(self, table: Any, number: int) -> None:
        self._table, self._number = table, number

    def __getitem__(self, name: str) -> Any:
        return self._table[name][self._number].as_py()

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)


class Chunks:
    """All chunks of a set that ``litdata.optimize`` wrote.

    Args:
        place: a folder, or a URL that litdata knows (``s3://``, ``gs://``, ``r2://``, ``azure://``, ``local:``).
        cache_dir: folder for chunks that are fetched; ``None``: that of litdata.
        max_cache_bytes: chunks are thrown out, the longest unused first, before there are more; all processes of a
            machine share it.
        storage_options: for the URL, see litdata.

    Attributes:
        place: as given.
        index: content of ``index.json``.
        names: of the chunks.
        rows: of each chunk.

    Raises:
        ValueError: there is no such set, it is of a kind that cannot be read by row, or the cache is too small.
    """

    def __init__(
        self,
        place: str,
        cache_dir: str | None = None,
        max_cache_bytes: int = 50 * 2**30,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        _require_litdata()
        self.place, self._options = place, dict(storage_options or {})
        self.index = _load_index(place, self._options)
        _check_kind(self.index["config"], place)
        chunks = self.index["chunks"]
        self.names = [str(chunk["filename"]) for chunk in chunks]
        self.rows = [int(chunk["chunk_size"]) for chunk in chunks]
        self._sizes = [int(chunk["chunk_bytes"]) for chunk in chunks]
        is_url = _URL.match(place) is not None
        self._url: str | None = place.rstrip("/") if is_url else f"local:{os.path.abspath(place)}"
        self._folder, self._max_bytes = Path(place), max_cache_bytes
        self._processes: dict[int, _Process] = {}
        if is_url or self.index["config"].get("compression"):
            self._check_cache()
            self._folder = _cache_folder(cache_dir, self.index)
        else:
            self._url = None
            _check_files(self._folder, self.names)

    def row(self, chunk: int, number: int) -> Mapping[str, Any]:
        """A row of a chunk, which is fetched if it is not there.

        Raises:
            BadSampleError: chunk or row are damaged.
        """
        process = self._process()
        rows = process.rows.pop(chunk, None)
        if rows is None:
            with self._open(process, chunk) as file:
                rows = _rows(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), chunk, process.loader)
        process.rows[chunk] = rows  # the last to be let go
        if len(process.rows) > OPEN_CHUNKS:
            process.rows.pop(next(iter(process.rows)))
        return rows(number)

    def _open(self, process: "_Process", chunk: int) -> BinaryIO:
        """The chunk's file; others may throw it out of the cache while it is open."""
        path = process.path(chunk)
        for _ in range(_TRIES):
            try:
                file = open(path, "rb")  # noqa: SIM115  # the caller closes it
            except FileNotFoundError:
                if self._url is None:
                    raise BadSampleError("unreadable", f"{path} is gone") from None
                self._fetch(process, chunk)
                continue
            if os.fstat(file.fileno()).st_size < self._sizes[chunk]:
                file.close()
                raise BadSampleError("truncated chunk", f"{path} has not the {self._sizes[chunk]:,} bytes it should")
            if self._url is not None:
                os.utime(file.fileno())  # it was used just now, for all processes
            return file
        raise RuntimeError(f"{path} was fetched {_TRIES} times, and each time was gone before it could be read.")

    def _fetch(self, process: "_Process", chunk: int) -> None:
        """Bring a chunk into the cache, one process for all, and throw out others if there are too many."""
        from filelock import FileLock

        path, locks = process.path(chunk), self._folder / "locks"
        with FileLock(locks / f"fetch-{chunk % _LOCKS}"):
            if not path.exists():
                process.config.download_chunk_from_index(chunk, skip_lock=True)
        with FileLock(locks / "throw-out"), os.scandir(self._folder) as entries:
            found = sorted((entry.stat().st_mtime_ns, entry.path) for entry in entries if entry.name.endswith(".bin"))
            left = sum(os.path.getsize(name) for _, name in found)
            for _, oldest in found:
                if left <= self._max_bytes or oldest == str(path):
                    break
                left -= os.path.getsize(oldest)
                os.unlink(oldest)

    def _process(self) -> "_Process":
        """What this process has open. What its parent had is kept: clients of a store do not survive a fork."""
        if os.getpid() not in self._processes:
            self._processes[os.getpid()] = _Process(self._folder, self._url, self._options)
        return self._processes[os.getpid()]

    def _check_cache(self) -> None:
        needed = sum(sorted(self._sizes)[-OPEN_CHUNKS:])
        if self._max_bytes < needed:
            raise ValueError(
                f"Samples are drawn from ten chunks at a time; those of {self._url} need a cache of at least "
                f"{needed / 2**30:.3g} GiB, got {self._max_bytes / 2**30:.3g}: raise `data.init_args.cache_gib`."
            )

    def __getstate__(self) -> dict[str, Any]:
        """Loading processes that are not forked open everything for themselves."""
        return {**self.__dict__, "_processes": {}}


class _Process:
    """What one process has open: litdata's view of the set, and the chunks used last."""

    def __init__(self, folder: Path, url: str | None, options: Mapping[str, Any]) -> None:
        from litdata.streaming.item_loader import PyTreeLoader
        from litdata.streaming.reader import BinaryReader

        self.loader = PyTreeLoader(batch_decode=0)
        self._reader = BinaryReader(
            str(folder), remote_input_dir=url, item_loader=self.loader, storage_options=dict(options)
        )
        self._reader.get_chunk_intervals()  # reads the index
        self.config = self._reader.config
        self.rows: dict[int, Rows] = {}

    def path(self, chunk: int) -> Path:
        """Where the chunk is, once it is there."""
        from litdata.streaming.sampler import ChunkedIndex

        return Path(self.config[ChunkedIndex(index=-1, chunk_index=chunk)][0])


def _rows(content: mmap.mmap, chunk: int, loader: Any) -> Rows:
    """Rows of the Arrow table at a chunk's end, as litdata writes plain values; or items that it decodes one by one."""
    from litdata.streaming.item_loader import load_arrow_footer_table

    table = load_arrow_footer_table(memoryview(content))
    if table is not None:
        return lambda number: ArrowRow(table, number)

    def row(number: int) -> Mapping[str, Any]:
        try:
            begin, end = struct.unpack_from("<II", content, 4 * (1 + number))
            item = loader.load_item_from_bytes(bytearray(content[begin:end]), chunk)  # pixels are views of it
        except (RuntimeError, OSError, ValueError, IndexError, struct.error) as error:
            raise BadSampleError("damaged", str(error)[:200]) from error
        if not isinstance(item, Mapping):
            raise ValueError(f"Expected each sample to be a dictionary, got {type(item).__name__}: give columns names.")
        return item

    return row


def _load_index(place: str, options: Mapping[str, Any]) -> dict[str, Any]:
    from litdata.streaming.downloader import get_downloader

    try:
        if _URL.match(place) is None:
            return dict(json.loads(Path(place, "index.json").read_bytes()))
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "index.json")
            get_downloader(place, folder, [], dict(options)).download_file(
                f"{place.rstrip('/')}/{path.name}", str(path)
            )
            return dict(json.loads(path.read_bytes()))
    except Exception as error:  # each store has its own
        raise ValueError(
            f"Expected a set that `litdata.optimize` wrote in {place}, but its index.json cannot be read: {error}. Is "
            "it one level too high or too low?"
        ) from error


def _check_kind(config: Mapping[str, Any], place: str) -> None:
    """Refuse what cannot be read row by row."""
    kinds = {
        "chunks of another loader than PyTreeLoader": config.get("item_loader", "PyTreeLoader") != "PyTreeLoader",
        "encrypted chunks": config.get("encryption"),
        "samples compressed in batches": config.get("compression") and config.get("compression_level"),
    }
    found = [kind for kind, is_there in kinds.items() if is_there]
    if found:
        raise ValueError(
            f"{place} holds {' and '.join(found)}, which cannot be read by position. Write it with `litdata.optimize` "
            "without `compression`, `encryption` and `item_loader`: pictures are compressed already."
        )


def _check_files(folder: Path, names: list[str]) -> None:
    missing = sorted(set(names) - set(os.listdir(folder)))
    if missing:
        raise ValueError(
            f"Expected {len(names)} chunks in {folder}, as its index.json says, but {', '.join(missing[:5])} "
            f"{'and others ' if len(missing) > 5 else ''}do not exist. Copy the whole folder."
        )


def _cache_folder(parent: str | None, index: Mapping[str, Any]) -> Path:
    """A folder for the chunks of this index and no other, with the index in it."""
    from litdata.utilities.dataset_utilities import get_default_cache_dir

    content = json.dumps(index).encode()
    folder = Path(parent or get_default_cache_dir(), f"siglightning-{digest([content])}")
    (folder / "locks").mkdir(parents=True, exist_ok=True)
    fresh = folder / f"index.json.{os.getpid()}"
    fresh.write_bytes(content)
    fresh.replace(folder / "index.json")
    return folder


def _require_litdata() -> None:
    """Raise ``ValueError`` where the library is missing."""
    try:
        import litdata  # noqa: F401  # to see whether it is there
    except ImportError as error:
        raise ValueError('Chunks of litdata need an extra: pip install "siglightning[litdata]".') from error
