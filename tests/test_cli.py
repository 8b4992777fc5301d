"""The command line against a fake appliance: what it prints, what it asks for, with what status it exits."""

from __future__ import annotations

import json
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import pytest

from krononat import appliance, config, doctor
from krononat.cli import COMMANDS, main, root
from krononat.packet import Packet, build, read_packet
from shards import verdict
from shards.state import EVENTS, NAT_SESSION, Sizes, State, open_state, state_bytes, write_header
from tests.test_config import RIGHT
from tests.test_view import SIZES, put_session

ROOT = Path(__file__).parent.parent


class Fake(threading.Thread):
    """An appliance's control socket: answers from a real piece of memory, refuses what the real one would."""

    def __init__(self, path: Path, sizes: Sizes = SIZES) -> None:
        super().__init__(daemon=True)
        self.asked: list[dict[str, Any]] = []
        self.memory = os.memfd_create("fake")
        os.ftruncate(self.memory, state_bytes(sizes))
        mapped = mmap.mmap(self.memory, state_bytes(sizes))
        write_header(mapped, sizes)
        self.state: State = open_state(mapped, sizes)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.listener.bind(str(path))
        self.listener.listen()

    def run(self) -> None:
        """Answer until the listener is shut."""
        while True:
            try:
                stream, _ = self.listener.accept()
            except OSError:
                return
            with stream, stream.makefile("rb") as lines:
                request = json.loads(lines.readline())
                self.asked.append(request)
                descriptor = os.open(f"/proc/self/fd/{self.memory}", os.O_RDONLY) if request["do"] == "memory" else None
                told = json.dumps(self.answer(request)).encode() + b"\n"
                socket.send_fds(stream, [told], [] if descriptor is None else [descriptor])
                if descriptor is not None:
                    os.close(descriptor)

    def close(self) -> None:
        """Shut down."""
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.join(5)
        os.close(self.memory)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """What the supervisor says."""
        if request["do"] == "status":
            return {"ok": True, "status": {"name": "nat1", "worker": {"pid": 7, "starts": 1}}}
        if request["do"] == "memory":
            return {"ok": True}
        if request["do"] == "config":
            return {"ok": True, "config": config.canonical(config.read(RIGHT))}
        if request["do"] == "delete":
            rows = self.state.sessions
            alive = [line for line, generation in request["lines"] if rows[line]["generation"] == generation]
            for line in alive:
                rows[line]["kind"] = 0
            return {"ok": True, "deleted": len(alive)}
        return {"ok": False, "error": {"what": f"cannot do {request['do']!r}", "why": "no such request", "next": ""}}


class Result(NamedTuple):
    """What a command left behind."""

    status: int
    out: str
    err: str


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Run the command line in this process."""

    def call(*words: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["krononat", *words])
        with pytest.raises(SystemExit) as left:
            main()
        out, err = capfd.readouterr()
        return Result(int(left.value.code or 0), out, err)

    return call


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    """A fake appliance with two sessions, named by the environment."""
    server = Fake(tmp_path / "nat1.sock")
    state = server.state
    state.core[0]["next_extent"] = 1
    state.extents[0]["kind"] = NAT_SESSION
    now = 1_000_000
    monkeypatch.setattr("krononat.clock.ticks", lambda: now)
    for line, (protocol, word) in enumerate(((17, "udp"), (6, "established")), 1):
        put_session(state, line, protocol, line, word=word)
        state.sessions[line]["created"], state.sessions[line]["expiry"] = now - 9000, now + 5000
    state.counters[verdict.RECEIVED, 0] = 9
    state.counters[verdict.FORWARDED_OUT, 0] = 6
    state.counters[verdict.NO_MAPPING, 0] = 3
    state.settings[0]["pools"] = 1
    state.pools[0]["externals"], state.pools[0]["block_size"], state.pools[0]["end_block"] = 4, 512, 128
    monkeypatch.setenv("KRONONAT_SOCKET", str(tmp_path / "nat1.sock"))
    server.start()
    yield server
    server.close()


# --- sessions -------------------------------------------------------------------------------------------------------------


def test_sessions_list(run: Run, fake: Fake) -> None:
    status, out, _ = run("sessions", "list")
    assert status == 0
    assert [line.split() for line in out.splitlines()] == [
        ["ID", "PROTO", "INTERNAL", "EXTERNAL", "REMOTE", "STATE", "AGE", "S", "EXPIRES", "S", "PACKETS"],
        ["1", "udp", "100.64.0.1:4000", "203.0.113.1:2001", "198.51.100.9:53", "udp", "9", "5", "7"],
        ["2", "tcp", "100.64.0.2:4000", "203.0.113.1:2002", "198.51.100.9:53", "established", "9", "5", "7"],
    ]


def test_sessions_in_other_forms(run: Run, fake: Fake) -> None:
    rows = json.loads(run("ses", "l", "-o", "json").out)
    assert [row["internal"] for row in rows] == ["100.64.0.1", "100.64.0.2"]
    assert [json.loads(line) for line in run("ses", "l", "-o", "jsonl").out.splitlines()] == rows
    assert run("ses", "l", "-p", "tcp", "-o", "conntrack").out == (
        "tcp      6 5 ESTABLISHED src=100.64.0.2 dst=198.51.100.9 sport=4000 dport=53 "
        "src=198.51.100.9 dst=203.0.113.1 sport=53 dport=2002 [ASSURED] mark=0 use=1\n"
    )


def test_sessions_are_filtered_and_limited(run: Run, fake: Fake) -> None:
    assert run("sessions", "count").out == "2\n"
    assert run("sessions", "count", "-s", "100.64.0.2", "-p", "tcp", "--dport", "53", "--state", "established").out == "1\n"
    assert json.loads(run("sessions", "count", "--nat-port", "2001", "-o", "json").out) == {"sessions": 1}
    assert run("sessions", "count", "--subscriber", "100.64.0.2/31", "--src", "100.64.0.0/24").out == "1\n"
    _, out, err = run("sessions", "list", "--limit", "1", "-o", "jsonl")
    assert len(out.splitlines()) == 1
    assert "more than 1 fit" in err


def test_sessions_show(run: Run, fake: Fake) -> None:
    assert json.loads(run("sessions", "show", "2", "-o", "json").out)["state"] == "established"
    status, _, err = run("sessions", "show", "3")
    assert status == 4
    assert err == "krononat: there is no session 3\n  why:  it ended, or never was\n  next: krononat sessions list\n"


def test_delete_is_planned_and_refused_without_a_yes(run: Run, fake: Fake) -> None:
    assert run("sessions", "delete").status == 2
    assert [row["id"] for row in json.loads(run("sessions", "delete", "--all", "--dry-run").out)["delete"]] == [1, 2]
    status, _, err = run("sessions", "delete", "--all")
    assert status == 1
    assert "nobody is there to agree" in err
    assert run("sessions", "delete", "-p", "icmp", "--yes").status == 4
    assert not [request for request in fake.asked if request["do"] == "delete"]


def test_delete_names_rows_with_their_generation(run: Run, fake: Fake) -> None:
    assert run("sessions", "delete", "-p", "tcp", "--yes").out == "1 of 1 sessions deleted\n"
    assert fake.asked[-1] == {"do": "delete", "lines": [[2, 3]]}
    assert run("sessions", "count").out == "1\n"


# --- the rest of a running appliance --------------------------------------------------------------------------------------


def test_status_joins_the_supervisors_facts_and_the_cores(run: Run, fake: Fake) -> None:
    told = json.loads(run("status", "-o", "json").out)
    assert told["appliance"]["worker"] == {"pid": 7, "starts": 1}
    assert told["packets"] == {"received": 9, "forward": 6, "punt": 0, "shunt": 0, "hold": 0, "control": 0, "drop": 3}
    assert told["drops"] == {"no_mapping": 3}
    assert "nat1" in run("status").out


def test_drops_have_a_sentence_and_a_remedy(run: Run, fake: Fake) -> None:
    (row,) = json.loads(run("drops", "-o", "json").out)
    assert row["reason"] == "no_mapping"
    assert row["packets"] == 3
    assert "no mapping has this external endpoint" in row["sentence"]
    assert "static mapping" in row["remedy"]
    assert len(json.loads(run("drops", "--all", "-o", "json").out)) == sum(told.fate == "drop" for told in verdict.VERDICTS)


def write_events(state: State, *kinds: int) -> None:
    """Append events about 100.64.0.2's block or session to the log."""
    for kind in kinds:
        row = state.events[int(state.logged[0])]
        row["kind"], row["tick"], row["account"] = kind, 1_000_000, 3
        row["internal_address"], row["external_address"] = 0x64400002, 0xCB007101
        row["external_port"], row["external_last"] = (1024, 1087) if kind >= 16 else (1030, 1030)
        if kind < 16:
            row["internal_realm"], row["internal_port"] = 17 << 24, 4000
            row["remote_address"], row["remote_port"] = 0x08080808, 53
        state.logged[0] += 1


def test_events_in_three_forms(run: Run, fake: Fake) -> None:
    fake.state.settings[0]["log"] = 3
    write_events(fake.state, 16, 8, 4)
    told = json.loads(run("events", "-o", "json").out)
    assert [row["kind"] for row in told] == ["block_allocated", "mapping_created", "session_created"]
    assert (told[0]["external_port"], told[0]["external_last"], told[2]["remote"]) == (1024, 1087, "8.8.8.8")
    last = [json.loads(line) for line in run("events", "-o", "jsonl", "--last", "2").out.splitlines()]
    assert [row | {"time": ""} for row in last] == [row | {"time": ""} for row in told[1:]]
    table = run("events").out
    assert "203.0.113.1:1024-1087" in table and "100.64.0.2:4000" in table and "8.8.8.8:53" in table


def test_events_say_when_nothing_is_logged(run: Run, fake: Fake) -> None:
    left = run("events")
    assert left.status == 0 and "nothing is logged" in left.err


@pytest.mark.parametrize("form", ["table", "jsonl"])
def test_events_are_followed_and_missed_ones_counted(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    fake.state.settings[0]["log"] = 1
    write_events(fake.state, 16)
    rounds = iter((lambda: write_events(fake.state, 17), lambda: overrun(fake.state), None))

    def wait(_: float) -> None:
        happens = next(rounds)
        if happens is None:
            raise KeyboardInterrupt
        happens()

    monkeypatch.setattr("krononat.cli.events.time.sleep", wait)
    left = run("events", "--follow", "-o", form)
    assert left.status == 0 and "5 events went by unread" in left.err
    if form == "jsonl":
        told = [json.loads(line) for line in left.out.splitlines()]
        assert [row.get("kind") for row in told[:3]] == ["block_allocated", "block_released", None]
        assert told[2] == {"missed": 5} and len(told) == 3 + EVENTS - 1
    assert run("events", "--follow", "-o", "json").status == 2


def overrun(state: State) -> None:
    """The writer goes on by more than the ring holds."""
    state.logged[0] += EVENTS + 4
    state.events["kind"] = 16


def test_pools_have_their_names(run: Run, fake: Fake) -> None:
    (row,) = json.loads(run("pool", "list", "-o", "json").out)
    assert (row["name"], row["addresses"], row["blocks"]) == ("main", 4, 512)
    assert run("pool", "show", "main").status == 0
    assert run("pool", "show", "other").status == 4


def test_config_show_of_the_running_appliance(run: Run, fake: Fake) -> None:
    assert run("config", "show").out == config.canonical(config.read(RIGHT))


def test_nobody_there(run: Run, tmp_path: Path) -> None:
    status, out, err = run("status", "--socket", str(tmp_path / "none.sock"))
    assert status == 3
    assert out == ""
    assert "krononat: the appliance cannot be reached" in err
    assert "next: start it with" in err


def test_a_refusal_is_told(run: Run, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = {"ok": False, "error": {"what": "no", "why": "the worker is away", "next": "wait"}}
    monkeypatch.setattr(fake, "answer", lambda request: refusal)
    status, _, err = run("sessions", "list")
    assert (status, err) == (1, "krononat: no\n  why:  the worker is away\n  next: wait\n")


# --- without one ----------------------------------------------------------------------------------------------------------


def test_names_may_be_shortened(run: Run) -> None:
    status, _, err = run("co", "init")
    assert status == 2
    assert "'co' may be config, compile, compliance or completion: type" in err
    assert run("conf", "ini").out.startswith("# A core of Krononat")
    assert "No such command 'stauts'. Did you mean 'status'?" in run("stauts").err
    assert "No such command 'lsit'. Did you mean 'list'?" in run("sessions", "lsit").err
    assert "'s' may be schema or show: type" in run("config", "s").err


def test_config_check(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "nat.toml"
    path.write_text(RIGHT)
    status, out, _ = run("config", "check", str(path))
    assert status == 0
    assert config.read(out) == config.read(RIGHT)
    assert json.loads(run("config", "check", str(path), "-o", "json").out)["pool"][0]["block-size"] == 512
    path.write_text(RIGHT.replace("gateway", "gatway"))
    status, out, err = run("config", "check", str(path))
    assert (status, out) == (78, "")
    assert err.startswith(f"{path}:8:1: interfaces.external.gatway: unknown key")


def test_a_wrong_configuration_starts_nothing(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "nat.toml"
    path.write_text(RIGHT.replace("/28", "/33"))
    for words in (("run", "-c"), ("trace", "udp 100.64.0.2:1 > 9.9.9.9:9", "-c"), ("doctor", "-c"), ("config", "show")):
        status, out, err = run(*words, str(path))
        assert (status, out) == (78, ""), words
        assert f"{path}:16:13: " in err


def test_config_explain_and_schema(run: Run) -> None:
    assert "Ports of a block" in run("config", "explain", "pool.block-size").out
    assert run("config", "explain", "pool.blocksize").status == 4
    schema = json.loads(run("config", "schema").out)
    assert schema["$defs"]["Pool"]["properties"]["block-size"]["default"] == 512


def test_every_command_has_help_with_an_example(run: Run) -> None:
    for name in COMMANDS:
        if name in ("lab", "bench"):
            continue
        there = [[name], *([name, each] for each in subcommands(name))]
        told = "".join(run(*words, "--help").out for words in there)
        assert f"Example: krononat {name}" in told or "Example: eval" in told, name


def subcommands(name: str) -> list[str]:
    """Of a command of ours."""
    context = click.Context(root)
    command = root.get_command(context, name)
    return command.list_commands(context) if isinstance(command, click.Group) else []


def fresh(*words: str, code: str = "") -> subprocess.CompletedProcess[str]:
    """The command line, or a piece of code, in a process of its own."""
    command = [sys.executable, "-c", code] if code else [sys.executable, "-m", "krononat", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_line_imports_no_compiler(fake: Fake) -> None:
    heavy = ("numba", "llvmlite", "numpy", "pydantic", "rich")
    allowed = {
        ("--help",): (),
        ("sessions", "list", "--help"): (),
        ("config", "init"): ("pydantic",),
        ("shard", "list", "--help"): (),
        ("server", "drain", "--help"): (),
        ("replication", "status", "--help"): (),
        ("sessions", "count"): ("numpy",),
        ("status",): ("numpy",),
        ("drops",): ("numpy",),
        ("events",): ("numpy",),
    }
    for words, may in allowed.items():
        code = (
            f"import sys; from krononat.cli import main; sys.argv[1:] = {list(words)!r}\n"
            "try: main()\nexcept SystemExit as left: assert not left.code, left.code\n"
            f"print([name for name in {heavy!r} if name in sys.modules], file=sys.stderr)"
        )
        done = fresh(code=code)
        assert done.returncode == 0, done.stderr
        loaded = set(eval(done.stderr.splitlines()[-1]))
        assert loaded <= set(may), (words, loaded)


# --- trace ----------------------------------------------------------------------------------------------------------------


def test_packets_are_read_as_they_are_written() -> None:
    for text in (
        "udp 100.64.0.2:4000 > 198.51.100.9:53",
        "tcp syn,ack 100.64.0.2:4000 > 198.51.100.9:53",
        "icmp echo 100.64.0.2 > 198.51.100.9 id 7",
    ):
        assert str(read_packet(text)) == text
    assert read_packet("tcp 1.1.1.1:1 > 2.2.2.2:2").flags == 2
    assert read_packet("udp 1.1.1.1:1 > 2.2.2.2:2 ttl 3 length 999")[-2:] == (3, 999)


def test_a_built_frame_has_right_checksums() -> None:
    def total(data: bytes) -> int:
        data += bytes(len(data) % 2)
        folded = sum(int.from_bytes(data[at : at + 2], "big") for at in range(0, len(data), 2))
        return folded % 0xFFFF  # a right checksum makes it 0 (RFC 1071)

    for text in ("udp 1.2.3.4:5 > 6.7.8.9:10 length 33", "tcp 1.2.3.4:5 > 6.7.8.9:10", "icmp timestamp 1.2.3.4 > 6.7.8.9"):
        packet: Packet = read_packet(text)
        ip = build(packet, bytes(6), vlan=9)[18:]
        body = ip[20:]
        pseudo = ip[12:20] + bytes((0, ip[9])) + len(body).to_bytes(2, "big") if packet.protocol != "icmp" else b""
        assert total(ip[:20]) == 0
        assert total(pseudo + body) == 0
        assert len(ip) == max(packet.length, int.from_bytes(ip[2:4], "big"))


@pytest.mark.parametrize(
    "text",
    [
        "udp 1.1.1.1 > 2.2.2.2:2",
        "grs 1.1.1.1 > 2.2.2.2",
        "gre 1.1.1.1:5 > 2.2.2.2",
        "300 1.1.1.1 > 2.2.2.2",
        "tcp sin 1.1.1.1:1 > 2.2.2.2:2",
        "udp",
    ],
)
def test_what_is_no_packet_is_a_usage_error(run: Run, text: str) -> None:
    status, _, err = run("trace", text)
    assert status == 2
    assert "next: write it like" in err


def test_trace_offline(tmp_path: Path) -> None:
    path = tmp_path / "nat.toml"
    path.write_text(RIGHT + '[[rule]]\nprotocol = "tcp"\nremote-ports = "25"\naction = "reject"\n')
    done = fresh("trace", "-c", str(path), "udp 100.64.0.2:4000 > 198.51.100.9:53", "-o", "json")
    told = json.loads(done.stdout)
    assert told["verdict"]["name"] == "forwarded_out"
    assert [stage["stage"] for stage in told["stages"]] == [
        "receive", "parse", "direction", "lookup", "rules", "session", "way back", "next hop", "send",
    ]  # fmt: skip
    assert told["sent"].startswith("udp 203.0.113.")
    assert told["sent"].endswith(" > 198.51.100.9:53, 42 bytes, ttl 63")
    done = fresh("trace", "-c", str(path), "tcp syn 100.64.0.2:4000 > 198.51.100.9:25")
    assert "rule 0 decides: protocol tcp, remote-ports 25, action reject" in done.stdout
    assert "verdict: rule_rejected: refused by a rule, and told so" in done.stdout
    assert "icmp error 3/13 100.64.0.1 > 100.64.0.2" in done.stdout
    done = fresh("trace", "-c", str(path), "udp 9.9.9.9:4000 > 203.0.113.1:53")
    assert "verdict: no_mapping" in done.stdout


NO_COMPILER = "import sys; sys.modules['numba'] = sys.modules['llvmlite'] = None\n"


@pytest.mark.parametrize(
    ("packet", "told"),
    [
        ("tcp syn 9.9.9.9:5000 > 203.0.113.5:8080", ["static mapping 203.0.113.5:8080 = 100.64.0.7:80", ": forwarded_in: "]),
        ("tcp syn 9.9.9.66:5000 > 203.0.113.5:8080", ["rule 0 decides: direction inbound", "nothing", ": rule_dropped: "]),
        (
            "tcp syn 100.64.0.3:5 > 203.0.113.5:8080",
            ["turns round by its", "> 100.64.0.7:80, 54 bytes, ttl 63", ": hairpinned: "],
        ),
        ("tcp ack 100.64.0.3:5 > 9.9.9.9:80", [": tcp_not_opening: "]),
        ("tcp rst 100.64.0.7:80 > 9.9.9.9:5", ["= 100.64.0.7:80 is what it leaves by", "> 9.9.9.9:5, 54", ": forwarded_out: "]),
        ("icmp echo 100.64.0.3 -> 9.9.9.9 id 7 length 100", ["100.64.0.3:7 = 203.0.113.", "114 bytes", ": forwarded_out: "]),
        ("udp 100.64.0.3:5 > 9.9.9.9:53 ttl 1", ["icmp error 11/0 100.64.0.1 > 100.64.0.3", ": ttl_exceeded: "]),
        ("icmp echo 9.9.9.9 > 192.0.2.2", ["the core's own address: given to the kernel", ": punted: "]),
        ("icmp echo 100.64.0.3 > 192.0.2.2", ["the core's own address: given to the kernel", ": punted: "]),
        ("udp 9.9.9.9:5 > 100.64.0.1:53", [": inside_destination: "]),
        ("udp 9.9.9.9:5 > 192.0.2.255:53", ["a broadcast address: given to the kernel", ": punted: "]),
        ("udp 100.64.0.3:5 > 224.0.0.5:53", ["multicast or link-local: given to the kernel", ": punted: "]),
    ],
)
def test_trace_without_a_compiler(tmp_path: Path, packet: str, told: list[str]) -> None:
    path = tmp_path / "nat.toml"
    path.write_text(
        RIGHT
        + '[[rule]]\ndirection = "inbound"\nremote = "9.9.9.66"\naction = "drop"\n'
        + '[[mapping]]\nprotocol = "tcp"\ninternal = "100.64.0.7:80"\nexternal = "203.0.113.5:8080"\n'
    )
    words = ["krononat", "trace", "-c", str(path), packet]
    done = fresh(code=f"{NO_COMPILER}from krononat.cli import main\nsys.argv = {words!r}\nmain()")
    assert done.returncode == 0, done.stderr
    assert [part for part in told if part not in done.stdout] == [], done.stdout


def test_trace_changes_nothing_in_the_running_core(tmp_path: Path) -> None:
    """A core that no worker has attached to yet is enough: its rows are there."""
    read = config.read(RIGHT.replace('gateway = "192.0.2.1"\n', "") + "[memory]\nsessions = 1000\n")
    server = Fake(tmp_path / "nat1.sock", appliance.compose(read))
    links = [appliance.Link(bytes((2, 0, 0, 0, 0, side)), 1500, False) for side in (1, 2)]
    appliance.fill(server.state, read, links, bytes(16), bytes(16))
    server.start()
    before = os.pread(server.memory, state_bytes(appliance.compose(read)), 0)
    done = fresh("trace", "--socket", str(tmp_path / "nat1.sock"), "udp 100.64.0.99:4000 > 192.0.2.9:53", "-o", "json")
    assert json.loads(done.stdout)["verdict"]["name"] == "forwarded_out", done.stderr
    assert os.pread(server.memory, state_bytes(appliance.compose(read)), 0) == before
    server.close()


# --- doctor ---------------------------------------------------------------------------------------------------------------


def put(root: Path, path: str, text: str) -> None:
    target = root / path.lstrip("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text)


def test_doctor_on_a_machine_that_lacks_everything(tmp_path: Path) -> None:
    put(tmp_path, "/proc/sys/kernel/osrelease", "5.4.0-42-generic\n")
    put(tmp_path, "/proc/self/status", "CapEff:\t0000000000001000\n")
    put(tmp_path, "/proc/sys/net/core/bpf_jit_enable", "0\n")
    put(tmp_path, "/sys/kernel/mm/transparent_hugepage/shmem_enabled", "always advise [never] deny\n")
    put(tmp_path, "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "powersave\n")
    put(tmp_path, "/proc/stat", "cpu  800 0 100 0 0 0 0 100 0 0\n")
    put(tmp_path, "/proc/meminfo", "MemAvailable:    1024 kB\n")
    machine = doctor.Machine(tmp_path, config.read(RIGHT))
    checks = (doctor.kernel, doctor.capabilities, doctor.priority, doctor.bpf_jit, doctor.huge_pages, doctor.governor)
    more = (doctor.steal, doctor.interfaces, doctor.memory)
    found = {finding.id: finding for check in checks + more for finding in check(machine)}
    assert {name: finding.result for name, finding in found.items()} == {
        "kernel": "FAIL",
        "capabilities": "FAIL",
        "priority": "WARN",
        "bpf-jit": "WARN",
        "huge-pages": "WARN",
        "cpu-governor": "WARN",
        "cpu-steal": "WARN",
        "interface-inside0": "FAIL",
        "interface-outside0": "FAIL",
        "memory": "WARN",
    }
    assert found["capabilities"].measured == "missing NET_RAW, IPC_LOCK, BPF"
    assert found["cpu-steal"].measured == "10.0 %"
    assert all(finding.fix for finding in found.values())


@pytest.mark.parametrize(
    ("capable", "limit", "told"),
    [("0000000000800000", 0, "OK"), ("0000000000000000", 30, "OK"), ("0000000000000000", 29, "WARN")],
    ids=["CAP_SYS_NICE", "limit", "neither"],
)
def test_doctor_tells_whether_who_forwards_may_go_first(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capable: str, limit: int, told: str
) -> None:
    put(tmp_path, "/proc/self/status", f"CapEff:\t{capable}\n")
    monkeypatch.setattr("resource.getrlimit", lambda _: (limit, limit))
    (found,) = doctor.priority(doctor.Machine(tmp_path))
    assert (found.result, bool(found.fix)) == (told, told == "WARN")


def test_doctor_looks_for_taps_and_for_memif_servers(tmp_path: Path) -> None:
    text = RIGHT.replace('name = "inside0"', 'name = "inside0"\nmemif = { socket = "@vpp" }')
    text = text.replace('name = "outside0"', 'name = "o0"\nmemif = { socket = "/m.sock" }')
    machine = doctor.Machine(tmp_path, config.read(text))
    for expected in (["FAIL", "WARN", "FAIL", "WARN"], ["OK", "OK", "OK", "OK"]):
        found = [finding for finding in doctor.interfaces(machine) if finding.id.startswith(("tap", "memif"))]
        assert [finding.result for finding in found] == expected
        for folder in ("dev/net/tun", "proc/net"):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/net/unix").write_text("Num: ... Path\n0000: 00000002 0 10000 5 01 593086 @vpp\n")
        (tmp_path / "m.sock").touch()


def test_doctor_exits_with_1_after_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "nat.toml"
    path.write_text(RIGHT)
    done = fresh("doctor", "-c", str(path), "-o", "json")
    found = {row["id"]: row for row in json.loads(done.stdout)}
    assert done.returncode == 1
    assert found["interface-inside0"]["result"] == "FAIL"
    assert "1,000,000 sessions" in found["memory"]["needed"]
    assert set(found["kernel"]) == {"id", "result", "measured", "needed", "fix"}


def test_a_scenario_without_steps_holds_nothing(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "empty.nat"
    file.write_text("# Nothing happens.\ngiven pool 203.0.113.0/31\n")
    told = run("lab", "scenario", str(file))
    assert told.status == 1 and "it has no steps" in told.err and "hold" not in told.out
