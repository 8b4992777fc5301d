"""The appliance as a whole, in namespaces of its own: up, in use, hit, and gone without a trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import shards
from krononat import client, promptness, view
from krononat.client import BAD_CONFIG, NO_PRIVILEGE
from krononat.config import read
from shards import jit
from shards.state import LAYOUT, NAT_SESSION
from tests.place import PATIENCE_S, Place, a_place, alive, until

pytestmark = pytest.mark.lab

SHMEM = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with a_place("krnsv", tmp_path_factory.mktemp("krnsv")) as made, made.appliance():
        yield made


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with a_place("krnsw", tmp_path) as made:
        yield made


def test_a_busy_worker_never_sleeps(place: Place) -> None:
    place.config.write_text(place.config.read_text() + "[io]\nbusy-poll = true\n")
    with place.appliance():
        breaths = place.breaths()
        assert place.ping() == 3
        assert place.breaths() - breaths > 100  # one that sleeps breathes ten times a second


# --- in use ---------------------------------------------------------------------------------------------------------------


def test_packets_pass_and_status_tells(running: Place) -> None:
    assert running.ping() == 3
    status = running.status()
    inside, outside = status["ports"]
    assert (inside["interface"], inside["side"], inside["queues"], outside["queues"]) == ("in0", "internal", 1, 2)
    assert inside["xdp_mode"] == "native"
    assert inside["steering"]["redirected"] >= 3
    assert status["packets"]["forward"] >= 6 and status["packets"]["punt"] >= 1
    assert status["sessions"] >= 1 and status["mappings"] >= 1
    assert status["neighbours"]["reachable"] == 2
    assert status["worker"]["ready"] and status["worker"]["restarts"] == 0
    assert status["worker"]["heartbeat_ms"] < 5000
    assert status["pages"] in ("2 MiB reserved", "2 MiB transparent", "4 KiB")


def test_the_kernel_forwards_nothing_and_answers_for_the_core(running: Place) -> None:
    assert running.inside.run("ping", "-c1", "-W2", "100.64.0.1", check=False).returncode == 0
    assert running.inside.run("ping", "-c1", "-W2", "192.0.2.2", check=False).returncode == 0
    forwarded = running.core.run("grep", "^Ip:", "/proc/net/snmp").stdout.splitlines()
    counts = dict(zip(forwarded[0].split(), forwarded[1].split(), strict=True))
    assert counts["ForwDatagrams"] == "0"


def test_the_configuration_is_told_in_canonical_form(running: Place) -> None:
    told = client.ask(running.socket, {"do": "config"})["config"]
    assert read(told) == read(running.config.read_text())


def test_the_memory_is_for_reading_only(running: Place) -> None:
    descriptor = client.memory(running.socket)
    try:
        assert view.count_sessions(view.open_view(descriptor)) >= 0
        with pytest.raises(OSError, match=r"Bad file descriptor|not permitted"):
            os.pwrite(descriptor, b"x", 0)
        reopened = (
            "import os; os.setgid(65534); os.setuid(65534)\n"
            f"try: os.open('/proc/self/fd/{descriptor}', os.O_RDWR)\n"
            "except PermissionError: print('refused')"
        )
        told = subprocess.run(
            [sys.executable, "-c", reopened], pass_fds=[descriptor], capture_output=True, text=True, check=True, timeout=20
        )
        assert told.stdout == "refused\n"
    finally:
        os.close(descriptor)


def test_sessions_are_deleted_by_line_and_life(running: Place) -> None:
    running.ping(1)
    descriptor = client.memory(running.socket)
    state = view.open_view(descriptor)
    os.close(descriptor)
    found = list(view.sessions(state))
    assert found
    session = found[0]
    assert client.delete(running.socket, [(session.line, (session.generation + 1) & 0xFFFF)]) == 0
    assert client.delete(running.socket, [(0, 0), (-1, 0), (1 << 40, 0), (session.line, session.generation)]) == 1
    assert state.sessions[session.line]["kind"] != NAT_SESSION
    assert client.delete(running.socket, [(session.line, session.generation)] * 1000) == 0
    assert client.delete(running.socket, []) == 0
    with pytest.raises(client.Trouble, match="not a deletion"):
        client.ask(running.socket, {"do": "delete", "lines": [["1", 2]]})


def test_the_worker_is_nobody(running: Place) -> None:
    told = Path(f"/proc/{running.status()['worker']['pid']}/status").read_text()
    fields = dict(line.split(":", 1) for line in told.splitlines())
    assert {int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert set(fields["Uid"].split()) == {"65534"} and fields["NoNewPrivs"].strip() == "1"
    assert fields["Cpus_allowed_list"].strip() == str(running.status()["worker"]["cpu"])


def test_the_spare_is_nobody_and_sleeps(running: Place) -> None:
    running.until_spare()
    spare = Path(f"/proc/{running.status()['spare']['pid']}")
    fields = dict(line.split(":", 1) for line in (spare / "status").read_text().splitlines())
    assert {int(fields[name], 16) for name in ("CapPrm", "CapEff", "CapBnd")} == {0} and set(fields["Uid"].split()) == {"65534"}
    used = (spare / "stat").read_text().split()[13:15]
    time.sleep(0.5)
    assert (spare / "stat").read_text().split()[13:15] == used


def test_who_forwards_goes_before_programs_and_so_does_who_stands_by(running: Place) -> None:
    """Not only who is started by it: one that loaded at a lower priority must not keep that."""
    running.until_spare()
    status = running.status()
    numbers = status["pid"], status["worker"]["pid"], status["spare"]["pid"]
    assert [os.getpriority(os.PRIO_PROCESS, number) for number in numbers] == [promptness.NICENESS] * 3


def test_an_idle_worker_sleeps(running: Place) -> None:
    pid = running.status()["worker"]["pid"]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    time.sleep(3)
    later = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    used_s = sum(int(later[k]) - int(fields[k]) for k in (11, 12)) / os.sysconf("SC_CLK_TCK")
    assert used_s / 3 < (0.25 if jit.PURE else 0.02)


def test_a_second_one_is_refused(running: Place) -> None:
    first = running.log.read_text()
    status, told = running.run()
    running.log.write_text(first)
    assert status == 1 and "running already" in told
    assert running.ping() == 3


def test_a_stalling_client_harms_nobody(running: Place) -> None:
    with socket.socket(socket.AF_UNIX) as stream:
        stream.connect(running.socket)
        stream.sendall(b'{"do": "status"}\n' * 500 + b'{"do": ')
        assert running.ping() == 3
        assert running.status()["worker"]["ready"]


# --- hit ------------------------------------------------------------------------------------------------------------------


def test_the_spare_takes_over_from_a_killed_worker_and_its_sessions_live_on(running: Place) -> None:
    running.inside.run("ping", "-c1", "-e", "777", "192.0.2.1", check=False)
    running.until_spare()
    before = running.status()
    assert before["spare"]["pid"] != before["worker"]["pid"]
    os.kill(before["worker"]["pid"], signal.SIGKILL)
    until(lambda: running.replaced(before["worker"]["pid"]), 60)
    after = running.status()
    assert after["worker"]["restarts"] == 1 and after["worker"]["pid"] == before["spare"]["pid"]
    assert os.getpriority(os.PRIO_PROCESS, after["worker"]["pid"]) == promptness.NICENESS
    assert after["sessions"] >= 1 and after["worker"]["late_compilations"] == 0
    assert 0 < after["worker"]["takeover_ms"] < 1000 * PATIENCE_S
    assert running.ping() == 3
    assert sum(port["steering"]["no_socket"] for port in after["ports"]) == 0


def test_a_worker_that_hangs_is_ended(running: Place) -> None:
    before = running.status()["worker"]
    os.kill(before["pid"], signal.SIGSTOP)
    until(lambda: running.status()["worker"]["restarts"] > before["restarts"], 30)
    until(lambda: running.status()["worker"]["ready"], 60)
    assert running.ping() == 3


def test_a_spare_that_dies_is_replaced_and_no_packet_notices(running: Place) -> None:
    running.until_spare()
    before = running.status()
    os.kill(before["spare"]["pid"], signal.SIGKILL)
    assert running.ping() == 3
    running.until_spare(before["spare"]["pid"])
    after = running.status()
    assert after["worker"]["pid"] == before["worker"]["pid"] and after["worker"]["restarts"] == before["worker"]["restarts"]
    assert "cannot stand by: it ended with SIGKILL" in running.log.read_text()


def test_a_worker_that_dies_while_its_spare_loads_has_that_one_as_successor(running: Place) -> None:
    running.until_spare()
    before = running.status()
    for _ in range(2):  # the first one's successor has no spare yet that could follow it
        pid = running.status()["worker"]["pid"]
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: running.replaced(pid), 60)  # type: ignore[misc]
    assert running.status()["worker"]["restarts"] == before["worker"]["restarts"] + 2
    assert running.ping() == 3


def test_without_a_spare_a_killed_worker_is_replaced_a_little_later(place: Place) -> None:
    place.config.write_text(place.config.read_text() + "[io]\nspare = false\n")
    with place.appliance():
        before = place.status()
        assert before["spare"] == {"state": "off", "pid": None}
        os.kill(before["worker"]["pid"], signal.SIGKILL)
        until(lambda: (now := place.status()["worker"])["ready"] and now["pid"] != before["worker"]["pid"], 60)
        until(lambda: place.ping(1, 1) == 1, 60)  # what is known of neighbours is asked anew, and answers take their time
        assert place.ping() == 3 and place.status()["spare"]["pid"] is None


# --- replaced -------------------------------------------------------------------------------------------------------------


def replace(place: Place) -> tuple[int, str]:
    """`krononat worker replace`: exit status and output."""
    done = place.core.run(
        sys.executable, "-m", "krononat", "worker", "replace", "--socket", place.socket, "-o", "json", check=False
    )
    return done.returncode, done.stdout + done.stderr


def test_a_worker_is_replaced_under_traffic_and_nothing_is_lost(running: Place) -> None:
    before = running.status()["worker"]
    pings = running.inside.start("ping", "-c", "150", "-i", "0.01", "-W", "2", "192.0.2.1", stdout=subprocess.PIPE)
    status, told = replace(running)
    assert status == 0 and '"state": "done"' in told
    assert pings.communicate(timeout=30)[0].count("bytes from") == 150
    after = running.status()["worker"]
    assert after["pid"] != before["pid"] and after["replacement"]["takeover_ms"] == after["takeover_ms"]
    assert "has retired" in running.log.read_text()


def test_a_program_of_another_layout_refuses_and_the_old_worker_goes_on(place: Place, tmp_path: Path) -> None:
    ours, theirs = Path(shards.__file__).parent.parent, tmp_path / "program"
    for package in ("krononat", "replication", "routing", "shards"):
        shutil.copytree(ours / package, theirs / package, ignore=shutil.ignore_patterns("__pycache__"))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", str(theirs))
        patched.setenv("NUMBA_DISABLE_JIT", "1")  # a copy would be compiled from cold, for numba's cache goes by path
        patched.chdir(tmp_path)
        with place.appliance():
            before = place.status()["worker"]["pid"]
            state = theirs / "shards" / "state.py"
            state.write_text(state.read_text().replace(f"\nLAYOUT = {LAYOUT} ", "\nLAYOUT = 99 "))
            status, told = replace(place)
            assert status == 1 and f"memory has layout {LAYOUT}/" in told and "this program 99/" in told
            assert place.status()["worker"]["pid"] == before and place.ping() == 3
            until(lambda: place.status()["spare"]["state"].startswith("refused: this memory has layout"), 20)


# --- gone -----------------------------------------------------------------------------------------------------------------


def test_sigterm_takes_everything_back(place: Place) -> None:
    before, pages = place.settings(), SHMEM.read_text()
    with place.appliance() as process:
        assert place.ping() == 3
        worker = place.status()["worker"]["pid"]
        assert place.settings() != before
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0
    assert (place.settings(), SHMEM.read_text()) == (before, pages)
    assert not alive(worker)
    assert not Path(place.socket).exists()


def kill_supervisor(place: Place, process: subprocess.Popen[str]) -> int:
    """Only that; its worker's number."""
    told = place.status()
    os.kill(told["pid"], signal.SIGKILL)
    process.wait(10)
    return int(told["worker"]["pid"])


def test_a_killed_supervisor_is_followed_by_another_and_no_packet_notices(place: Place) -> None:
    before = place.settings()
    with place.appliance() as process:
        place.until_spare()
        answered = place.config.with_name("ping.txt")
        with answered.open("w") as told:
            outside = place.inside.start("ping", "-c", "30000", "-i", "0.01", "192.0.2.1", stdout=told)
        time.sleep(0.5)
        worker, spare = place.status()["worker"]["pid"], place.status()["spare"]["pid"]
        assert kill_supervisor(place, process) == worker
        until(lambda: not alive(spare), 5)
        assert alive(worker) and not place.answers() and place.ping() == 3
        os.setpriority(os.PRIO_PROCESS, worker, 0)  # as under a supervisor that might not raise it
        with place.appliance() as heir:
            assert os.getpriority(os.PRIO_PROCESS, worker) == promptness.NICENESS
            status = place.status()
            assert status["worker"]["pid"] == worker and status["sessions"] >= 1
            assert f"worker {worker} has forwarded on without a supervisor, and is taken over" in place.log.read_text()
            place.until_spare()  # and it is looked after as before: told things, asked, replaced when it dies
            assert kill_supervisor(place, heir) == worker  # not only once
            with place.appliance() as third:
                assert place.status()["worker"]["pid"] == worker
                time.sleep(0.5)
                assert outside.poll() is None, "nothing was sent while the last one came"
                outside.send_signal(signal.SIGINT)
                outside.wait(10)
                numbers = [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", answered.read_text())]
                assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 150
                place.until_spare()
                os.kill(worker, signal.SIGKILL)
                until(lambda: place.replaced(worker), 5)
                assert place.ping() == 3
                third.terminate()
                assert third.wait(20) == 0
    assert place.settings() == before and "xdp" not in place.core.ip("link")
    assert not list(place.config.parent.glob("*.heir")) and not place.record.exists()


def test_an_orphan_of_another_configuration_is_ended_and_one_that_nobody_wants_ends_itself(place: Place) -> None:
    before, right = place.settings(), place.config.read_text()
    try:
        with place.appliance() as process:
            worker = kill_supervisor(place, process)
            assert alive(worker)
            place.config.write_text(right.replace("sessions = 10000", "sessions = 20000"))
            with place.appliance() as other:
                assert not alive(worker) and place.ping() == 3
                assert "is ended: it goes by another configuration" in place.log.read_text()
                other.terminate()
                assert other.wait(20) == 0
        assert place.settings() == before
        place.config.write_text(right.replace('name = "krnsv"', 'name = "krnsv"\norphan-s = 2'))
        with place.appliance() as process:
            worker, began = kill_supervisor(place, process), time.monotonic()
            until(lambda: not alive(worker), 10)
            assert time.monotonic() - began > 1.5
    finally:
        place.config.write_text(right)


def test_what_was_changed_at_run_time_outlives_the_supervisor_and_a_worker_that_hangs_then_does_not(place: Place) -> None:
    before = place.settings()
    with place.appliance() as process:
        client.ask(place.socket, {"do": "close", "addresses": ["192.0.2.65"]})
        time.sleep(0.5)  # until it was left
        worker = kill_supervisor(place, process)
        with place.appliance() as heir:
            assert place.status()["worker"]["pid"] == worker and place.ping() == 3
            told = read(client.ask(place.socket, {"do": "config"})["config"])
            assert list(map(str, told.pool[0].drain)) == ["192.0.2.65"]
            assert "changed while it ran (pool.drain)" in place.log.read_text()
            time.sleep(0.5)
            assert kill_supervisor(place, heir) == worker
            os.kill(worker, signal.SIGSTOP)
            with place.appliance() as third:
                assert not alive(worker) and place.ping() == 3
                assert f"worker {worker}, which a killed run left, was killed" in place.log.read_text()
                third.terminate()
                assert third.wait(20) == 0
    assert place.settings() == before


def test_rfc6888_req3_an_address_is_added_and_taken_away_under_traffic(place: Place) -> None:
    """Who speaks loses nothing; who comes next gets the new one, on-link, so that the core answers for it; heirs know it."""
    before, answered, changed = place.settings(), place.config.with_name("ping.txt"), place.config.with_name("more.toml")
    place.inside.ip("addr add 100.64.0.10/24 dev eth0")
    old = [f"192.0.2.{number}" for number in range(64, 68)]
    more = f'prefixes = ["192.0.2.64/30", "192.0.2.96/32"]\ndrain = {json.dumps(old)}'
    changed.write_text(place.config.read_text().replace('prefixes = ["192.0.2.64/30"]', more))
    with place.appliance() as process:
        with answered.open("w") as told:
            stream = place.inside.start("ping", "-c", "30000", "-i", "0.01", "192.0.2.1", stdout=told)
        until(lambda: place.external("100.64.0.9") in old, 5)
        paired = place.external("100.64.0.9")
        said = place.krononat("config", "apply", str(changed)).stdout
        assert "changed: pool main: 192.0.2.96 comes (1 address); room for 15 more" in said
        assert place.asks("100.64.0.10") == 3
        assert (place.external("100.64.0.9"), place.external("100.64.0.10")) == (paired, "192.0.2.96")
        time.sleep(0.5)  # until it was left
        worker = kill_supervisor(place, process)
        with place.appliance() as heir:
            assert place.status()["worker"]["pid"] == worker and place.asks("100.64.0.10") == 3
            stream.send_signal(signal.SIGINT)
            stream.wait(10)
            numbers = [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", answered.read_text())]
            assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 50
            place.until_spare()
            os.kill(worker, signal.SIGKILL)
            until(lambda: place.replaced(worker), 5)
            assert place.asks("100.64.0.10") == 3 and place.external("100.64.0.10") == "192.0.2.96"
            lines = [[told.line, told.generation] for told in place.sessions("100.64.0.10")]
            assert client.ask(place.socket, {"do": "delete", "lines": lines})["deleted"] == len(lines)
            client.ask(place.socket, {"do": "close", "addresses": old, "undo": True})
            client.ask(place.socket, {"do": "close", "addresses": ["192.0.2.96"]})
            assert "goes (1 address)" in place.krononat("pool", "remove", "main", "192.0.2.96").stdout
            assert "192.0.2.96" not in place.core.ip("route show table local")
            assert place.asks("100.64.0.10") == 3 and place.external("100.64.0.10") in old
            heir.terminate()
            assert heir.wait(20) == 0
    place.inside.ip("addr del 100.64.0.10/24 dev eth0")
    assert place.settings() == before


def test_the_death_of_the_supervisor_ends_worker_and_program_where_that_is_wanted(place: Place) -> None:
    before, pages = place.settings(), SHMEM.read_text()
    place.config.write_text(place.config.read_text().replace('name = "krnsv"', 'name = "krnsv"\norphan-s = 0'))
    with place.appliance() as process:
        worker = place.status()["worker"]["pid"]
        supervisor = place.status()["pid"]
        os.kill(supervisor, signal.SIGKILL)
        process.wait(10)
    until(lambda: not alive(worker), 5)
    until(lambda: "xdp" not in place.core.ip("link"), 5)
    assert place.settings() != before
    assert place.record.stat().st_mode & 0o777 == 0o600
    with place.appliance() as process:  # what is left over is in nobody's way, and taken back with the rest
        assert place.ping() == 3
        assert "a killed run left behind taken back" in place.log.read_text()
        process.terminate()
        assert process.wait(20) == 0
    assert (place.settings(), SHMEM.read_text()) == (before, pages)
    assert not place.record.exists()


def test_what_fails_halfway_is_taken_back(place: Place) -> None:
    before = place.settings()
    right = place.config.read_text()
    try:
        place.config.write_text(right.replace('name = "krnsv"', 'name = "krnsv"\ncpu = 4000'))
        place.record.write_bytes(b"\xff\x00")  # no record: said, and passed over
        status, told = place.run()
        assert status == BAD_CONFIG and "CPU 4000 is not ours to use" in told
        assert f"{place.record} is passed over" in told
        assert place.settings() == before and not place.record.exists()
        place.config.write_text(right.replace('"out0"', '"out7"'))
        status, told = place.run()
        assert status == BAD_CONFIG and "no interface 'out7'" in told and "in0" in told
        assert place.settings() == before
    finally:
        place.config.write_text(right)


def test_without_privileges_it_says_so(place: Place) -> None:
    status, told = place.run("setpriv", "--bounding-set", "-all", "--inh-caps", "-all")
    assert status == NO_PRIVILEGE and "CAP_NET_ADMIN" in told
