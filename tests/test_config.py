"""The configuration: what is right round-trips, what is wrong is told with its place, in one line each."""

from __future__ import annotations

import copy
import os
import pathlib
import tomllib
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krononat import config, models, models_limits
from krononat.appliance import KEY_FILE
from krononat.locate import Path, Places
from krononat.mend import mend
from krononat.starter import STARTER
from krononat.values import EVERY_PORT, Endpoint, PortRange, Protocol

RIGHT = """\
[interfaces.internal]
name = "inside0"
address = "100.64.0.1/16"

[interfaces.external]
name = "outside0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"

[[subscribers]]
prefix = "100.64.0.0/24"
pool = "main"

[[pool]]
name = "main"
prefixes = ["203.0.113.0/28"]
"""

REFUSED = pathlib.Path(__file__).with_name("refused_configs.txt")


def complaints(text: str) -> list[str]:
    """First lines of what is said about a text that must be refused."""
    with pytest.raises(config.ConfigError) as caught:
        config.read(text, "nat.toml")
    return [line for line in str(caught.value).splitlines() if not line.startswith("    ")]


def test_defaults_are_those_of_the_rfcs() -> None:
    read = config.read(RIGHT)
    assert read.timeouts.tcp_established == 7440
    assert read.timeouts.udp == 300
    assert read.pool[0].ports == PortRange(1024, 65535)
    assert set(read.pool[0].filtering.words) == {"endpoint-independent"}
    assert read.socket == "/run/krononat/nat1.sock"


def test_canonical_form_of_a_full_file_parses_to_the_same() -> None:
    text = RIGHT.replace(
        'pool = "main"\n',
        """pool = "main"
limits = { sessions = 100, rate = 5, burst = 9 }
[[subscribers.subscriber]]
prefix = "100.64.0.7/32"
limits = { ports = 5 }
rules = [ { protocol = "tcp", remote-ports = "25", action = "reject" }, { action = "drop", remote = "198.51.100.0/24" } ]
mappings = [ { protocol = "tcp", internal = "100.64.0.7:80", external = "203.0.113.1:8080" } ]
[[subscribers.subscriber.device]]
prefix = "100.64.0.7/32"
limits = { sessions = 3 }
rules = [ { action = "accept" } ]
""",
    )
    read = config.read(text)
    assert read.subscribers[0].subscriber[0].device[0].limits.sessions == 3
    assert config.read(config.canonical(read)) == read
    assert config.canonical(config.read(config.canonical(read))) == config.canonical(read)


def test_the_starter_file_is_right_and_its_comments_are_defaults() -> None:
    read = config.read(STARTER)
    assert config.read(config.canonical(read)) == read
    uncommented = STARTER
    for key in (
        "xdp-mode", "busy-poll", "frames", "each", "ports", "block-size", "max-blocks-per-subscriber", "filtering", "hairpin",
        "hold-down-s", "mss-clamp", "inbound-refresh", "unsolicited-syn", "tcp-established", "tcp-transitory", "udp",
        "icmp", "generic", "other-protocols", "errors-per-second", "reject-code", "vlan", "checksums", "core", "shard", "spare",
    ):  # fmt: skip
        before = uncommented
        uncommented = uncommented.replace(f"\n# {key} = ", f"\n{key} = ", 1)
        assert uncommented != before, key
    assert config.read(uncommented) == read
    at = STARTER.index("# [cluster]\n")
    table = "".join(line.removeprefix("# ") for line in STARTER[at : STARTER.index("\n\n", at) + 1].splitlines(keepends=True))
    clustered = config.read(f"{STARTER}\n{table}").cluster
    folder = KEY_FILE.parent
    files = str(folder / "map.toml"), str(folder / "nat1.key")
    assert clustered == models.Cluster(map=files[0], key_file=files[1], port_key_file=str(KEY_FILE))
    assert all(f"\n# {name.replace('_', '-')} = " in STARTER for name in models.Cluster.model_fields)


# --- what is refused: see refused_configs.txt ----------------------------------------------------------------------------


class Refused(NamedTuple):
    """A configuration that is refused: lines of RIGHT to take out, lines to put there (or at the end), what is said."""

    old: list[str]
    new: list[str]
    said: list[str]

    @property
    def text(self) -> str:
        """The file."""
        new = "\n".join(self.new)
        return RIGHT.replace("\n".join(self.old), new, 1) if self.old else f"{RIGHT}{new}\n"

    def lines(self) -> list[str]:
        """The case as it is written."""
        return [*(f"- {line}" for line in self.old), *(f"+ {line}" for line in self.new), *(f"> {line}" for line in self.said)]


def read_refused() -> list[Refused]:
    cases = []
    for paragraph in REFUSED.read_text().split("\n\n")[1:]:
        marks = {mark: [line[2:] for line in paragraph.splitlines() if line[:1] == mark] for mark in "-+>"}
        cases.append(Refused(marks["-"], marks["+"], marks[">"]))
    return cases


def test_refused_with_every_complaint_at_its_place() -> None:
    cases = read_refused()
    assert all("\n".join(case.old) in RIGHT for case in cases)
    got = [case._replace(said=complaints(case.text)) for case in cases]
    if os.environ.get("REWRITE"):
        head = REFUSED.read_text().split("\n\n")[0]
        REFUSED.write_text("\n\n".join([head, *("\n".join(case.lines()) for case in got)]) + "\n")
    assert got == cases


def test_short_timers_on_purpose() -> None:
    read = config.read(RIGHT + "[timeouts]\nallow-short-timers = true\nudp = 2\n")
    assert read.timeouts.udp == 2


def test_every_complaint_is_told_at_once_in_the_order_of_the_file() -> None:
    wrong = RIGHT.replace("100.64.0.1/16", "100.64.0.1").replace("203.0.113.0/28", "203.0.113.0/33") + "[nat]\nharpin = false\n"
    assert [line.split(": ")[0] for line in complaints(wrong)] == ["nat.toml:3:11", "nat.toml:16:13", "nat.toml:18:1"]


EVERYTHING = """\
[server]
name = "nat7"
[interfaces.internal]
name = "inside0"
address = "10.0.0.1/24"
gateway = "10.0.0.2"
[[interfaces.external]]
name = "outside0"
address = "192.0.2.2/24"
gateway = "192.0.2.1"
[[interfaces.external]]
name = "outside1"
address = "198.18.0.2/24"
gateway = "198.18.0.1"
[interfaces.loopback]
address = "10.254.0.1/24"
side = "external"
[[subscribers]]
prefix = "100.64.0.0/16"
each = 28
pool = "main"
limits = { rate = 5, burst = 6 }
[[subscribers.subscriber]]
prefix = "100.64.0.16/28"
limits = { burst = 7 }
rules = [{ protocol = "tcp", internal = "100.64.0.17", remote-ports = "25", action = "drop" }]
mappings = [{ protocol = "udp", internal = "100.64.0.17:80", external = "203.0.113.1:80" }]
[[subscribers.subscriber.device]]
prefix = "100.64.0.20/30"
each = 31
limits = { rate = 2, burst = 6 }
rules = [{ protocol = "udp", internal = "100.64.0.20/31", internal-ports = "7-9", action = "drop" }]
[[subscribers]]
prefix = "100.65.0.0/16"
pool = "spare"
[[pool]]
name = "main"
prefixes = ["203.0.113.0/28", "203.0.113.32/28"]
ports = "4096-5119"
block-size = 256
[[pool]]
name = "spare"
prefixes = ["198.51.100.0/28"]
[timeouts]
allow-short-timers = true
udp = 2
[limits]
rate = 9
burst = 9
[[mapping]]
protocol = "tcp"
internal = "100.64.0.17:80"
external = "203.0.113.1:80"
[[mapping]]
protocol = "tcp"
internal = "100.65.0.17:80"
external = "198.51.100.1:80"
[control]
socket = "/run/nat7"
"""


def paths(value: Any, at: Path = ()) -> list[Path]:
    """Every path in a tree of tables and arrays."""
    found = [at] if at else []
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in entries:
        found += paths(entry, (*at, key))
    return found


def broken_at(path: Path, mistyped: bool) -> dict[str, Any]:
    """EVERYTHING with the key at `path` mistyped, or with a value there that no field takes."""
    values = tomllib.loads(EVERYTHING)
    holder: Any = values
    for part in path[:-1]:
        holder = holder[part]
    if mistyped:
        holder[f"{path[-1]}x"] = holder.pop(path[-1])
    else:
        holder[path[-1]] = 1.5
    return values


def test_one_mistake_is_one_complaint_wherever_it_is() -> None:
    assert config.complaints(mend(tomllib.loads(EVERYTHING))) == []
    for path in paths(tomllib.loads(EVERYTHING)):
        assert [told.path for told in config.complaints(mend(broken_at(path, mistyped=False)))] == [path]
        if isinstance(path[-1], str):
            told = config.complaints(mend(broken_at(path, mistyped=True)))
            assert [complaint.path for complaint in told] == [(*path[:-1], f"{path[-1]}x")]


def test_whatever_is_wrong_can_be_mended() -> None:
    for path in paths(tomllib.loads(EVERYTHING)):
        assert mend(broken_at(path, mistyped=False)).config, path
    assert mend({}).config


junk = st.sampled_from((1.5, -1, 10**9, True, "", "x", "10.0.0.0/8", "0.0.0.0/0", "9-5", [], [[]], ["x"], [{}], {}, {"x": 1}))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(paths(tomllib.loads(EVERYTHING))), junk), min_size=1, max_size=4))
def test_several_mistakes_are_told_once_each(mistakes: list[tuple[Path, Any]]) -> None:
    values = tomllib.loads(EVERYTHING)
    for path, value in sorted(mistakes, key=lambda mistake: -len(mistake[0])):
        holder: Any = values
        for part in path[:-1]:
            holder = holder[part]
        holder[path[-1]] = copy.deepcopy(value)
    mended = mend(values)
    told = config.complaints(mended)
    assert mended.config
    assert len(told) == len(set(told))
    assert not [complaint for complaint in told if "stand-in" in complaint.what or "0.0.0.0/32" in complaint.what]


def test_of_a_long_line_only_what_is_around_the_place_is_shown_and_no_command_to_a_terminal() -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.read("x" * 100_000 + "\x1b[31m" + "x" * 100_000)
    place, line, caret = str(caught.value).splitlines()
    assert ":1:100001: " in place
    assert line.strip("x ").startswith("\ufffd[31m") and caret[line.index("\ufffd")] == "^"
    assert max(map(len, (place, line, caret))) < 200


def test_the_line_and_a_caret_are_shown() -> None:
    with pytest.raises(config.ConfigError) as caught:
        config.read(RIGHT.replace("192.0.2.2/24", "192.0.2.2"), "nat.toml")
    assert str(caught.value).splitlines()[1:] == ['    address = "192.0.2.2"', "              ^"]


def test_syntax_errors_have_their_place() -> None:
    assert complaints("a = ") == ["nat.toml:1:5: not TOML: invalid value"]


def test_a_file_without_an_end_is_told() -> None:
    with pytest.raises(config.ConfigError, match=r"/dev/zero.*longer than 64 MiB"):
        config.load("/dev/zero")


def test_an_unreadable_file_is_told() -> None:
    with pytest.raises(config.ConfigError, match="cannot be read: No such file or directory"):
        config.load("/nonexistent/nat.toml")


def test_doubts() -> None:
    text = RIGHT.replace("/28", "/32").replace("100.64.0.0/24", "100.64.0.0/17").replace('gateway = "192.0.2.1"\n', "")
    told = "\n".join(config.warnings(config.read(text), text, "nat.toml"))
    assert "1 addresses with 126 blocks of 512 ports serve 126 subscribers at once; 32,768 use this pool" in told
    assert "has no gateway to the Internet" in told
    text = RIGHT.replace('"203.0.113.0/28"', '"192.0.2.240/28", "100.64.9.0/28"')
    told = "\n".join(config.warnings(config.read(text), text, "nat.toml"))
    assert "192.0.2.255 is the own or broadcast address of 192.0.2.0/24 at outside0" in told
    assert "100.64.9.0/28 is on-link at inside0: subscribers would ask for it by ARP" in told
    assert config.warnings(config.read(RIGHT + "ports = '1024-65535'"), RIGHT, "nat.toml") == []


def test_limits_leave_out_what_the_wider_scope_says() -> None:
    wide = models_limits.Limits(sessions=10, ports=20, rate=0, burst=0)
    assert models_limits.Limits(ports=5).within(wide) == models_limits.Limits(sessions=10, ports=5, rate=0, burst=0)
    assert models_limits.Limits(rate=7).bucket == 7
    assert models_limits.Limits(rate=7, burst=9).bucket == 9


# --- places ---------------------------------------------------------------------------------------------------------------

TRICKY = '''\
"quoted key" = 'a = "b" # not a comment'
a.b.c = 1 # a comment with [brackets] and = signs
[t]  # header
list = [ 1, "two, ]", # comment ]
  [3, 4], { x = 5, y = { z = [6] } },
]
text = """
[[not.a.table]]
k = 1
"""
[[t.more]]
x = {}
[[t.more]]
x = 1979-05-27 07:32:00
[[t.more.deep]]
y = -1e3
[t.more.deep.er]
z = [[], [[]]]
'''


def test_every_path_has_a_place() -> None:
    places = Places(TRICKY)
    lines = TRICKY.splitlines()
    for path in paths(tomllib.loads(TRICKY)):
        assert path in places.keys or path in places.values, path
    assert places.of(("t", "list", 3, "y", "z", 0)) == (5, lines[4].index("6") + 1)
    assert places.of(("t", "more", 1, "deep", 0, "y")) == (16, 5)
    assert places.of(("t", "more", 0, "x"), key=True) == (12, 1)
    assert places.of(("t", "more", 1)) == (13, 1)
    assert places.of(("a", "b", "c")) == (2, 9)
    assert places.of(("t", "absent")) == (3, 1)


# --- any right configuration survives its canonical form ------------------------------------------------------------------

names = st.from_regex(r"[a-z][a-z0-9_.-]{0,10}", fullmatch=True)
port_ranges = st.tuples(st.integers(0, 65535), st.integers(0, 65535)).map(lambda pair: PortRange(min(pair), max(pair)))
counts = st.none() | st.integers(0, 1000)


@st.composite
def limits(draw: st.DrawFn) -> models_limits.Limits:
    rate = draw(st.none() | st.integers(1, 1000))
    return models_limits.Limits(sessions=draw(counts), ports=draw(counts), rate=rate, burst=draw(counts) if rate else None)


@st.composite
def rules(draw: st.DrawFn) -> models.Rule:
    protocol = Protocol(draw(st.sampled_from(("any", "tcp", "udp", "icmp", "gre", "etherip", "200"))))
    with_ports = protocol in ("tcp", "udp")
    return models.Rule(
        direction=draw(st.sampled_from(("outbound", "inbound", "both"))),
        protocol=protocol,
        remote=draw(st.none() | st.integers(0, 2**16 - 1).map(lambda top: IPv4Network((top << 16, 16)))),
        internal_ports=draw(port_ranges) if with_ports else EVERY_PORT,
        remote_ports=draw(port_ranges) if with_ports else EVERY_PORT,
        action=draw(st.sampled_from(("accept", "drop", "reject"))),
    )


@st.composite
def configs(draw: st.DrawFn) -> models.Config:
    pools = draw(st.lists(names, min_size=1, max_size=3, unique=True))
    hosts = draw(st.lists(st.integers(1, 200), max_size=3, unique=True))
    subscribers = [
        models.Subscriber(
            prefix=IPv4Network(f"10.0.0.{host}/32"),
            limits=draw(limits()),
            rules=draw(st.lists(rules(), max_size=2)),
            mappings=[
                models.Mapping(
                    protocol=Protocol("udp"),
                    internal=Endpoint(IPv4Address(f"10.0.0.{host}"), 53),
                    external=Endpoint(IPv4Address(f"203.0.0.{index}"), 53),
                )
            ],
            device=[models.Device(prefix=IPv4Network(f"10.0.0.{host}/32"), limits=draw(limits()))],
        )
        for index, host in enumerate(hosts)
    ]
    return models.Config(
        interfaces=models.Interfaces(
            internal=[
                models.Leg(
                    name=f"in{number}",
                    address=IPv4Interface(f"10.{64 * number}.0.1/10"),
                    vlan=draw(st.integers(0, 4094)),
                    mtu=draw(st.none() | st.just(1500)),
                )
                for number in range(draw(st.integers(1, 3)))
            ],
            external=[models.Leg(name=draw(st.sampled_from(('a"b', "o\\ut", "é0"))), address=IPv4Interface("192.0.2.2/24"))],
        ),
        subscribers=[
            models.Subscribers(prefix=IPv4Network(f"10.{number}.0.0/24"), pool=pool, subscriber=[] if number else subscribers)
            for number, pool in enumerate(pools)
        ],
        pool=[
            models.Pool(
                name=pool, prefixes=[IPv4Network(f"203.{number}.0.0/28")], block_size=draw(st.sampled_from((64, 512, 4096)))
            )
            for number, pool in enumerate(pools)
        ],
        rule=draw(st.lists(rules(), max_size=3)),
        limits=models_limits.Limits(sessions=draw(st.integers(0, 9)), ports=0, rate=5, burst=draw(counts)),
    )


def test_one_interface_of_a_side_is_a_table_and_several_are_a_list_of_them() -> None:
    single = config.read(RIGHT)
    listed = config.read(RIGHT.replace("[interfaces.external]", "[[interfaces.external]]"))
    assert listed == single and config.canonical(listed) == config.canonical(single)
    assert "\n[interfaces.external]\n" in config.canonical(single)
    second = '[[interfaces.external]]\nname = "outside1"\naddress = "198.18.0.2/30"\ngateway = "198.18.0.1"\n[[subscribers]]'
    several = config.read(RIGHT.replace("[interfaces.external]", "[[interfaces.external]]").replace("[[subscribers]]", second))
    assert [(side, port.name) for side, port in several.interfaces.named()] == [
        ("internal", "inside0"), ("external", "outside0"), ("external", "outside1"),
    ]  # fmt: skip
    assert config.canonical(several).count("[[interfaces.external]]\n") == 2
    assert config.read(config.canonical(several)) == several
    assert config.describe(("interfaces", "external", "gateway")).startswith("Next hop")
    schema = models.Interfaces.model_json_schema(by_alias=True)["properties"]["external"]["anyOf"]
    assert {told.get("type", "object") for told in schema} >= {"object", "array"}


def test_legs_that_cannot_stand_in_for_each_other_are_doubted() -> None:
    told = RIGHT.replace("[interfaces.external]", "[[interfaces.external]]\nmtu = 2000")
    told = told.replace(
        "[[subscribers]]", '[[interfaces.external]]\nname = "o1"\nmtu = 1500\naddress = "198.18.0.2/30"\n[[subscribers]]'
    )
    told += '[cluster]\nmap = "/x/map"\nkey-file = "/x/key"\n'
    doubts = [line.splitlines()[0] for line in config.warnings(config.read(told), told, "nat.toml")]
    assert [doubt.partition(": ")[2] for doubt in doubts] == [
        "interfaces.external[1]: has no gateway to the Internet; only what is on-link will be reached",
        "interfaces.external[1].mtu: 1500 is less than the 2000 of another leg: packets of a session that moves may not fit",
        "interfaces: several legs, but no [interfaces.loopback]: "
        "who shunts to the address of a leg finds nobody when that leg dies",
    ]


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(configs())
def test_canonical_form_parses_to_the_same(read: models.Config) -> None:
    assert config.read(config.canonical(read)) == read


def test_every_field_is_described() -> None:
    def undescribed(path: tuple[str, ...]) -> list[str]:
        found = [] if config.describe(path) else [".".join(path)]
        for key in config.keys_at(path):
            found += undescribed((*path, key))
        return found

    assert undescribed(()) == []
