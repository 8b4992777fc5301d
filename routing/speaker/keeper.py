"""Keeps ExaBGP alive: starts it, watches it, starts it anew after a pause when it has died, ends it with us."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from routing.speaker import exabgp, sessions

PAUSES = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)  # s before the next start, by early deaths in a row
EARLY = 30.0  # s; who has lived so long died of something else
GRACE_S = 3.0
NICENESS = -15  # a withdrawal is what moves the traffic: it goes before those that forward (`krononat.promptness`: -10)


class Keeper:
    """ExaBGP as a process. `folder`: where its files go, ours alone."""

    def __init__(self, plan: sessions.Plan, folder: Path, environment: Mapping[str, str], say: Callable[[str], None]) -> None:
        self._folder, self._say = folder, say
        (folder / "exabgp.env").write_text("")
        self._environment = _environment(environment, folder)
        self._told, self._file = folder / "plan.json", folder / "exabgp.conf"
        self._told.write_text(sessions.write(plan))
        helper = (sys.executable, "-m", "routing.helper", str(self._told))
        self._file.write_text(exabgp.configuration(plan, helper))
        self._process: subprocess.Popen[bytes] | None = None
        self._began, self._deaths = 0.0, 0
        self._over = threading.Event()

    def run(self) -> None:
        """Until `stop` is called by a signal's handler."""
        self._hurry()
        while True:
            self._start()
            status = self._wait()
            if self._over.is_set():
                break
            early = time.monotonic() - self._began < EARLY
            self._deaths = min(self._deaths + 1, len(PAUSES) - 1) if early else 0
            pause = PAUSES[self._deaths]
            self._say(f"ExaBGP died ({_cause(status)}): its sessions have ended; started anew in {pause:g} s")
            if self._over.wait(pause):
                break
        self._end()

    def stop(self) -> None:
        """End ExaBGP and `run`."""
        self._over.set()

    def _hurry(self) -> None:
        """ExaBGP and its helper have it from us."""
        try:
            os.setpriority(os.PRIO_PROCESS, 0, min(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        except PermissionError:
            self._say(f"may not raise its priority to {NICENESS} (CAP_SYS_NICE): withdrawals are slower on busy CPUs")

    def _start(self) -> None:
        command = [sys.executable, "-m", "routing.speaker.launch", str(os.getpid()), "server", str(self._file)]
        self._process = subprocess.Popen(command, env=self._environment, stdin=subprocess.DEVNULL, process_group=0)
        self._began = time.monotonic()
        self._say(f"ExaBGP is process {self._process.pid}")

    def _wait(self) -> int:
        assert self._process
        while not self._over.is_set():
            with contextlib.suppress(subprocess.TimeoutExpired):
                return self._process.wait(0.2)
        return 0

    def _end(self) -> None:
        """SIGTERM, so that it says goodbye to the switches; SIGKILL for one that does not heed it. Its helper ends with it."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.terminate()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _environment(given: Mapping[str, str], folder: Path) -> dict[str, str]:
    """ExaBGP heeds variables and a file of the machine's own; here it is to heed ours alone.

    It changes into another folder, from where its helper, too, must find this very package.
    """
    kept = {name: value for name, value in given.items() if not name.lower().startswith("exabgp")}
    found = os.pathsep.join(filter(None, (str(Path(__file__).parents[2]), given.get("PYTHONPATH", ""))))
    user = pwd.getpwuid(os.getuid()).pw_name
    ours = {"EXABGP_ROOT": str(folder), "EXABGP_ENVFILE": str(folder / "exabgp.env"), "PYTHONPATH": found}
    return {**kept, **exabgp.environment(user), **ours}


def _cause(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit status {status}"
