"""Where the map of a cluster is kept, and who may move shards: a file on each server, or etcd. Never on the path of packets.

A store holds one text, the map, and one lock, the mover's. The text changes by compare-and-swap alone: who writes names what he
has read. The lock is one process's at a time; a write goes through only while it is (the token fences off who has lost it and
does not know yet). Losing it stops moves, never forwarding.

    file    the map itself; its revision is a digest; the lock is flock(2) on FILE.mover: the process's end ends it
    etcd    PREFIX/map; its revision is mod_revision; the lock is PREFIX/mover, created with a lease and kept alive

`Watcher` reads a store again and again in a thread, so that who must not wait can look at what it saw last.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Protocol

from krononat.etcd import Etcd, Unreachable, is_at

LEASE_S = 10
WATCH_EACH_S = 1.0


class Seen(NamedTuple):
    """A map as it stands in a store."""

    text: str
    revision: int  # 0: there is none


class StoreError(Exception):
    """What a store cannot do, in words."""


class Gone(StoreError):
    """It cannot be reached."""


class Busy(StoreError):
    """Somebody else moves shards."""


class Changed(StoreError):
    """Somebody else has written meanwhile, or the lock is lost."""


class Lock(Protocol):
    """The right to move shards, and to write the map, as long as it is held; a context manager."""

    token: int

    def held(self) -> bool:
        """Whether it is ours for certain. No waiting."""

    def __enter__(self) -> Lock: ...
    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None: ...


class Store(Protocol):
    """A place for the map."""

    name: str  # for people

    def read(self) -> Seen:
        """What stands there. Gone."""

    def write(self, text: str, before: Seen, lock: Lock) -> Seen:
        """Write if nobody has since `before`, and the lock is ours. Gone, Changed."""

    def lock(self, holder: str) -> Lock:
        """Take the lock; `holder` is what others are told. Gone, Busy."""


def open_store(urls: Sequence[str], path: str, prefix: str = "/krononat") -> Store:
    """The store that a configuration means."""
    return EtcdStore(urls, prefix) if urls else FileStore(path)


# --- a file -----------------------------------------------------------------------------------------------------------------


class FileStore:
    """A file. Others may read it at any moment: it is replaced, never written into."""

    def __init__(self, path: str | Path) -> None:
        self.path, self.name = Path(path), str(path)
        self._known: tuple[tuple[int, int, int], Seen] | None = None

    def read(self) -> Seen:
        """See `Store`; a file that looks the same (time, size, inode) is not read again."""
        try:
            told = self.path.stat()
            mark = told.st_mtime_ns, told.st_size, told.st_ino
            if self._known is None or self._known[0] != mark:
                self._known = mark, _seen(self.path.read_text(errors="replace"))
        except FileNotFoundError:
            return Seen("", 0)
        except OSError as error:
            raise Gone(f"{self.path} cannot be read: {error.strerror}") from None
        return self._known[1]

    def write(self, text: str, before: Seen, lock: Lock) -> Seen:
        """See `Store`."""
        if not lock.held():
            raise Changed("the right to move shards is lost")
        try:
            with _alone(Path(f"{self.path}.write")):
                self._known = None
                if self.read().revision != before.revision:
                    raise Changed(f"somebody else has written {self.path} meanwhile")
                replace_file(self.path, text)
        except OSError as error:
            raise Gone(f"{self.path} cannot be written: {error.strerror}") from None
        return _seen(text)

    def lock(self, holder: str) -> Lock:
        """See `Store`."""
        path = Path(f"{self.path}.mover")
        try:
            return _FileLock(path, holder)
        except BlockingIOError:
            with contextlib.suppress(OSError):
                raise Busy(f"{path.read_text().strip() or 'somebody'} moves shards now") from None
            raise Busy("somebody moves shards now") from None
        except OSError as error:
            raise Gone(f"{path} cannot be locked: {error.strerror}") from None


def _seen(text: str) -> Seen:
    return Seen(text, zlib.crc32(text.encode()) + 1)


def replace_file(path: Path, text: str) -> None:
    """Have a file hold `text` from one moment to the next, with the mode that it had. OSError."""
    with contextlib.suppress(FileNotFoundError):
        path = path.resolve(strict=True)  # where it is a link, what it leads to
    new = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_native_id()}")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o644
    try:
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, path)
    finally:
        new.unlink(missing_ok=True)


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One writer at a time; each takes a moment."""
    with open(path, "a") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


class _FileLock:
    """flock(2): the kernel ends it with the process, so nobody can believe in it in vain."""

    def __init__(self, path: Path, holder: str) -> None:
        self._file = open(path, "a+")  # noqa: SIM115 - held until `__exit__`
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._file.close()
            raise
        self._file.truncate(0)
        self._file.write(f"{holder}\n")
        self._file.flush()
        self.token = os.fstat(self._file.fileno()).st_ino

    def held(self) -> bool:
        """See `Lock`."""
        return not self._file.closed

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        if not self._file.closed:
            self._file.truncate(0)
            self._file.close()


# --- etcd -------------------------------------------------------------------------------------------------------------------


class EtcdStore:
    """etcd, under keys that begin with `prefix`."""

    def __init__(self, urls: Sequence[str], prefix: str = "/krononat", timeout_s: float = 2.0, lease_s: int = LEASE_S) -> None:
        self.name = f"etcd at {', '.join(urls)}"
        self._etcd, self._lease_s = Etcd(urls, timeout_s), lease_s
        self._map, self._mover = f"{prefix}/map", f"{prefix}/mover"

    def read(self) -> Seen:
        """See `Store`."""
        try:
            return Seen(*self._etcd.get(self._map))
        except Unreachable as error:
            raise Gone(f"{self.name} does not answer: {error}") from None

    def write(self, text: str, before: Seen, lock: Lock) -> Seen:
        """See `Store`. An answer that is lost on its way is asked for: what stands there is ours, or another's."""
        if not lock.held():
            raise Changed("the right to move shards is lost: its lease has run out")
        conditions = [is_at(self._map, before.revision), is_at(self._mover, lock.token)]
        try:
            done = self._etcd.put_if(self._map, text, conditions)
            now = Seen(*self._etcd.get(self._map))
            if not done and now.text != text:
                mine = self._etcd.get(self._mover).revision == lock.token
                told = "somebody else has written the map meanwhile" if mine else "the right to move shards is lost"
                raise Changed(told)
        except Unreachable as error:
            raise Gone(f"{self.name} does not answer: {error}") from None
        return now

    def lock(self, holder: str) -> Lock:
        """See `Store`."""
        try:
            lease, began = self._etcd.grant(self._lease_s), time.monotonic()
            name = f"{holder} {lease:x}"  # nobody else's, so that we know it for ours
            done = self._etcd.put_if(self._mover, name, [is_at(self._mover, 0)], lease)
            now = self._etcd.get(self._mover)
            if not done and now.text != name:
                self._etcd.revoke(lease)
                raise Busy(f"{now.text.rpartition(' ')[0] or 'somebody'} moves shards now")
        except Unreachable as error:
            raise Gone(f"{self.name} does not answer: {error}") from None
        return _Lease(self._etcd, lease, now.revision, began, self._lease_s)


class _Lease:
    """A lock that a thread keeps alive; it counts from before each question, so it never lasts longer here than there."""

    def __init__(self, etcd: Etcd, lease: int, token: int, began: float, seconds: int) -> None:
        self.token = token
        self._etcd, self._lease, self._seconds = etcd, lease, seconds
        self._until = began + seconds
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="mover lock", daemon=True)
        self._thread.start()

    def held(self) -> bool:
        """See `Lock`."""
        return not self._ending.is_set() and time.monotonic() < self._until

    def _keep(self) -> None:
        while not self._ending.wait(self._seconds / 4):
            began = time.monotonic()
            with contextlib.suppress(Unreachable):
                left = self._etcd.keep(self._lease)
                self._until = began + left
                if not left:
                    return

    def __enter__(self) -> Lock:
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._ending.set()
        self._thread.join()
        with contextlib.suppress(Unreachable):
            self._etcd.revoke(self._lease)


# --- watching ---------------------------------------------------------------------------------------------------------------


class Watcher:
    """Reads a store each second in a thread. `take` gives what is new since it was asked last, and never waits."""

    def __init__(self, store: Store, each_s: float = WATCH_EACH_S, clock: Callable[[], float] = time.monotonic) -> None:
        self.trouble = ""  # why the store cannot be read now; empty: it can
        self._store, self._each_s, self._clock = store, each_s, clock
        self._seen: Seen | None = None
        self._taken = 0
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="map watcher", daemon=True)
        self._thread.start()

    def take(self) -> Seen | None:
        """The map as it was seen last, if that is another than was taken last."""
        seen = self._seen
        if seen is None or seen.revision in (0, self._taken):
            return None
        self._taken = seen.revision
        return seen

    def _watch(self) -> None:
        while not self._ending.is_set():
            try:
                self._seen = self._store.read()
                self.trouble = "" if self._seen.revision else f"{self._store.name} holds no map"
            except StoreError as error:
                self.trouble = str(error)
            except Exception as error:  # whatever the other end has sent: who forwards must not care
                self.trouble = f"{self._store.name}: {type(error).__name__}: {error}"
            self._ending.wait(self._each_s)

    def close(self) -> None:
        """Look no more; a question that is on its way is left to itself."""
        self._ending.set()
