"""Everyday programs that go on while a shard moves: iperf3 at 50 Mbit/s, downloads with curl, copies with scp, a shell by ssh.

Each is started again as soon as it has ended, so at every moment one of each kind has connections open. A run counts as broken
where the program says so, or where what arrived is not what was sent. All the time there is a call over UDP, too (`calls`); it
is broken where somebody heard nothing for longer than a browser waits, or heard it from another endpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from krononat.client import Trouble
from krononat.lab import servers
from krononat.lab.laboratory import Lab

BYTES, RATE = 20_000_000, 4_000_000  # of a transfer; bytes a second
RUN_S = 5
LINES, LINE_S = 40, 0.1  # of a shell: as many, each after so long
SILENCE_MS = 5000.0  # of a call: longer, and consent has expired soon (RFC 7675)
_PORT = 2222
_PATIENCE_S = 60.0
_ANEW_S = 0.5  # in which the server of iperf3 closes its port behind one test and opens it for the next
_CLIENT, _HOST = "c1", "h1"

_SSHD = """\
Port {port}
ListenAddress {address}
HostKey {folder}/host
AuthorizedKeysFile {folder}/user.pub
PermitRootLogin prohibit-password
StrictModes no
UsePAM no
PidFile none
Subsystem sftp internal-sftp
"""


class Ended(NamedTuple):
    """A run of a program: what it was, and what was wrong with it."""

    kind: str
    wrong: str


class Programs:
    """All three, from `with` to its end, which waits for the runs under way."""

    def __init__(self, lab: Lab) -> None:
        need()
        self._lab, self._address = lab, lab.topology.address(_HOST)
        self._folder = lab.folder / "ssh"
        self._file = lab.folder / "h1" / "www" / "part.bin"
        self._stopping = threading.Event()
        self.ended: list[Ended] = []
        kinds: dict[str, Callable[[], str]] = {
            "iperf3": self._iperf3, "curl": self._curl, "scp": self._scp, "ssh": self._ssh,
        }  # fmt: skip
        self._call: list[subprocess.Popen[bytes]] = []
        self._threads = [threading.Thread(target=self._again, args=each, name=each[0], daemon=True) for each in kinds.items()]

    def __enter__(self) -> Programs:
        with servers.payload(self._lab.folder).open("rb") as whole:
            part = whole.read(BYTES)
        self._file.write_bytes(part)
        self._wanted = hashlib.sha256(part).hexdigest()
        self._serve()
        for thread in self._threads:
            thread.start()
        self._begin_call()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(2 * _PATIENCE_S)
        self.end_call()

    def broken(self) -> list[Ended]:
        """Runs that went wrong so far."""
        return [each for each in self.ended if each.wrong]

    def _again(self, kind: str, run: Callable[[], str]) -> None:
        while not self._stopping.is_set():
            self.ended.append(Ended(kind, run()))
            if self.ended[-1].wrong:
                time.sleep(0.2)  # one outage is not a thousand broken runs

    # --- one run each: what was wrong, "" for nothing ---------------------------------------------------------------

    def _iperf3(self) -> str:
        words = ("iperf3", "-c", self._address, "-b", "50M", "-t", str(RUN_S), "--connect-timeout", "5000")
        done = self._lab.run(_CLIENT, *words, timeout_s=_PATIENCE_S)
        self._stopping.wait(_ANEW_S)
        return "" if done.returncode == 0 else (done.stderr or done.stdout).strip()[-200:] or f"status {done.returncode}"

    def _curl(self) -> str:
        arrived = self._lab.folder / "curl.bin"
        limits = ("--limit-rate", str(RATE), "--max-time", str(_PATIENCE_S))
        return self._transfer(arrived, "curl", "-sS", "--fail", *limits, "-o", str(arrived), f"http://{self._address}/part.bin")

    def _scp(self) -> str:
        arrived = self._lab.folder / "scp.bin"
        options = ("-F", "/dev/null", "-i", str(self._folder / "user"), "-P", str(_PORT), "-l", str(8 * RATE // 1000))
        source = f"root@{self._address}:{self._file}"
        return self._transfer(arrived, "scp", "-q", *options, *_options(), source, str(arrived))

    def _ssh(self) -> str:
        say = f"for n in $(seq {LINES}); do echo $n; sleep {LINE_S}; done"
        words = ("ssh", "-F", "/dev/null", "-i", str(self._folder / "user"), "-p", str(_PORT), *_options())
        done = self._lab.run(_CLIENT, *words, f"root@{self._address}", say, timeout_s=_PATIENCE_S)
        if done.returncode:
            return done.stderr.strip()[-200:] or f"status {done.returncode}"
        return (
            "" if done.stdout.split() == [str(n) for n in range(1, LINES + 1)] else f"other lines came: {done.stdout[-100:]!r}"
        )

    # --- the call ---------------------------------------------------------------------------------------------------

    def _begin_call(self) -> None:
        for node, words in ((_HOST, ("answer",)), (_CLIENT, ("call", self._address))):
            self._call.append(self._lab.start(node, f"call-{node}", (sys.executable, "-m", "bench.cluster.calls", *words)))

    def end_call(self) -> None:
        """Hang up, and note what both have heard."""
        for process in self._call:
            process.terminate()
            process.wait(10)
        for node in (_HOST, _CLIENT) if self._call else ():
            self.ended.append(Ended("call", _wrong(self._lab.log(f"call-{node}").read_text())))
        self._call = []

    def _transfer(self, arrived: Path, *words: str) -> str:
        done = self._lab.run(_CLIENT, *words, timeout_s=_PATIENCE_S)
        if done.returncode:
            return done.stderr.strip()[-200:] or f"status {done.returncode}"
        found = hashlib.sha256(arrived.read_bytes()).hexdigest()
        arrived.unlink()
        return "" if found == self._wanted else f"sha256 differs: {found}"

    # --- the server of scp ------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._folder.mkdir(mode=0o700, exist_ok=True)
        for name in ("host", "user"):
            self._lab.run(_HOST, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self._folder / name))
        config = self._folder / "sshd_config"
        config.write_text(_SSHD.format(port=_PORT, address=self._address, folder=self._folder))
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)  # sshd demands it
        self._lab.start(_HOST, "sshd", (_sshd(), "-D", "-e", "-f", str(config)))
        deadline = time.monotonic() + 10
        while not self._lab.run(_HOST, "ss", "-Hltn", f"sport = :{_PORT}").stdout.strip():
            if time.monotonic() > deadline:
                raise Trouble("sshd does not listen", self._lab.log("sshd").read_text()[-500:])
            time.sleep(0.05)


_ALONE = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")


def _options() -> list[str]:
    return [word for option in _ALONE for word in ("-o", option)]


def _wrong(told: str) -> str:
    """What was wrong with a call, by what one side said of it."""
    try:
        heard = json.loads(told.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return f"nothing was told: {told[-200:]}"
    if heard["sources"] != 1:
        return f"it came from {heard['sources']} endpoints"
    gap = heard["longest_gap_ms"]
    return f"nothing was heard for {gap:.0f} ms" if gap > SILENCE_MS else ""


def _sshd() -> str:
    return shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin") or ""


def need() -> None:
    """Trouble where a program is missing."""
    missing = [name for name, path in (("sshd", _sshd()), ("scp", shutil.which("scp"))) if not path]
    if missing:
        raise Trouble(f"not installed: {', '.join(missing)}", "", "./setup.sh tests, or apt-get install openssh-server")
