"""Tars from anywhere, as a stream: drawn at random, again and again."""

import random
import re
import tarfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any

from typing_extensions import override

from siglightning.data.images import BadSampleError
from siglightning.data.source import RawSample, SampleStream, digest
from siglightning.data.sources.members import Members, check_classes, check_exist, shard_names, split_name

_BROKEN = (OSError, EOFError, tarfile.TarError, zlib.error)
_URL = re.compile(r"([a-z][a-z0-9+.-]+):")


class TarStream(SampleStream):
    """Samples of tars that are drawn at random, again and again, and mixed in a buffer.

    A tar that ends too early, or cannot be opened, is one bad sample; reading goes on with the next.

    Args:
        tars: paths, URLs, or ``pipe:`` and a command that writes one; compressed ones, too.
        samples_per_epoch: what counts as an epoch.
        members: which file of a sample holds what.
        class_names: of the labels, in the order of their numbers.
        buffer: samples that are mixed, in each loading process.

    Raises:
        ValueError: a path does not exist, nobody can read a URL, classes have no names, or a number is not positive.
    """

    def __init__(
        self,
        tars: Sequence[str],
        samples_per_epoch: int,
        members: Members | None = None,
        class_names: Sequence[str] | None = None,
        buffer: int = 2000,
    ) -> None:
        if samples_per_epoch < 1 or buffer < 1:
            raise ValueError(
                f"`samples_per_epoch` and `shuffle_buffer` must be at least 1, got {samples_per_epoch} and {buffer}."
            )
        self.members = members or Members()
        self.class_names, self._numbers = check_classes(self.members, class_names)
        self.one_label = self.members.label is not None and not self.members.multi_label
        _check_readable(tars)
        self._names = dict(zip(tars, shard_names(tars), strict=True))
        self._length, self._buffer = samples_per_epoch, buffer

    @override
    def __len__(self) -> int:
        return self._length

    @property
    @override
    def fingerprint(self) -> str:
        """Of the names of the tars: what is in them is not known before it comes."""
        return digest([repr((list(self._names.values()), self.members, list(self.class_names))).encode()])

    @override
    def open(self, seed: int, bad: Callable[[str, BadSampleError], None]) -> Iterator[tuple[str, RawSample]]:
        webdataset = require_webdataset()
        tars = webdataset.ResampledShards(list(self._names), seed=seed, worker_seed=int, deterministic=True)
        samples = (sample for tar in tars for sample in self._samples(tar["url"], bad))
        mixed = webdataset.shuffle(self._buffer, initial=self._buffer, rng=random.Random(seed))
        for key, found in mixed(samples):
            try:
                raw = self.members.read(found, self._numbers)
            except BadSampleError as error:
                bad(key, error)
            except Exception as error:
                raise RuntimeError(f"Sample {key} of the tars failed: {error!r}") from error
            else:
                yield key, raw

    def _samples(self, tar: str, bad: Callable[[str, BadSampleError], None]) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Key and files of the samples of one tar, each once its neighbour begins."""
        name, key, count = self._names[tar], "", 0
        found: dict[str, bytes] = {}
        try:
            for path, content in self._files(tar):
                begun, suffix = split_name(path)
                if begun != key and found:
                    yield f"{name}/{key}", found
                    found = {}
                key, count = begun, count + 1
                found.setdefault(suffix, content)
        except _BROKEN as error:
            bad(f"{name}/{key}", BadSampleError("truncated tar" if count else "unreadable tar", str(error)[:200]))
            if self.members.lacking(found):
                return
        except Exception as error:
            raise RuntimeError(f"Tar {tar} failed after {key or 'nothing'}: {error!r}") from error
        if found:
            yield f"{name}/{key}", found
        elif not count:
            bad(f"{name}/", BadSampleError("empty tar", f"it holds no .{' or .'.join(self.members.suffixes())}"))

    def _files(self, tar: str) -> Iterator[tuple[str, bytes]]:
        from webdataset.tariterators import tar_file_iterator

        suffixes = set(self.members.suffixes())

        def wanted(path: str) -> bool:
            key, suffix = split_name(path)
            return bool(key) and suffix in suffixes

        stream = require_webdataset().gopen(tar)
        try:
            for file in tar_file_iterator(stream, select_files=wanted):
                yield file["fname"], file["data"]
        finally:
            with suppress(Exception):  # a command complains that nobody reads the end of what it has to say
                stream.close()


def is_url(place: str) -> bool:
    """Whether a tar comes from the web or from a command."""
    return _URL.match(place) is not None


def _check_readable(tars: Sequence[str]) -> None:
    """Refuse what cannot be opened before training, as far as that can be known."""
    known = sorted({*require_webdataset().gopen_schemes, "file"} - {"__default__"})
    for tar in tars:
        url = _URL.match(tar)
        if url is not None and url[1] not in known:
            raise ValueError(
                f"Expected a path, `pipe:` and a command, or a URL of {', '.join(known)}; got {tar}. For example: "
                f"`pipe:aws s3 cp {tar} -`."
            )
    check_exist([tar for tar in tars if not is_url(tar)])


def require_webdataset() -> Any:
    """The library.

    Raises:
        ValueError: it is not installed.
    """
    try:
        import webdataset
    except ImportError as error:
        raise ValueError('WebDataset needs an extra: pip install "siglightning[webdataset]".') from error
    return webdataset
