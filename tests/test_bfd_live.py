"""BFD with BIRD and FRR over real wires: up, a frozen worker is noticed, forgeries change nothing, overload flaps nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bench import generator
from krononat import client, view
from tests import bfd_model
from tests.bfd_daemons import Bird, Daemon, Frr, Pace
from tests.place import CONFIG, PATIENCE_S, Place, a_place, alive, until
from tests.test_bfd import internet_checksum
from tests.veth import drain, tap

pytestmark = pytest.mark.lab

OURS, PEER = "100.64.0.1", "100.64.0.9"
FROZEN_S = 0.6
FLOOD_S = 3.0
FLOOD_PPS = 1_700_000  # more than twice what is served; as fast as it goes it would take the CPU from the daemon, too
FLOWS = 2000


class Scene(NamedTuple):
    """An appliance that speaks BFD with a daemon on the inside."""

    place: Place
    daemon: Daemon
    pace: Pace

    def session(self) -> dict[str, Any]:
        """What the appliance says of it."""
        (told,) = client.ask(self.place.socket, {"do": "bfd"})["bfd"]
        return dict(told)

    def are_up(self) -> bool:
        """Whether both ends are."""
        return self.session()["state"] == "up" and self.daemon.is_up()

    def settle(self) -> None:
        """Until both ends are up and have agreed on their pace."""
        wanted = self.pace.interval_ms * self.pace.multiplier
        until(lambda: self.are_up() and self.session()["detect_ms"] == wanted, 20)

    def counters(self) -> dict[str, int]:
        """Verdicts and meters."""
        descriptor = client.memory(self.place.socket)
        try:
            return view.counters(view.open_view(descriptor))
        finally:
            os.close(descriptor)


@contextmanager
def scene(folder: Path, kind: type[Bird] | type[Frr], pace: Pace, prefix: str = "krnbg") -> Iterator[Scene]:
    """With a daemon on the inside, before and behind it nobody."""
    with a_place(prefix, folder) as place:
        text = CONFIG.replace("SOCKET", place.socket).replace('prefix = "100.64.0.0/24"', 'prefix = "100.64.0.0/16"')
        text = text.replace('"100.64.0.1/24"', f'"100.64.0.1/24"\ngateway = "{PEER}"').replace(".64/30", ".64/26")
        place.config.write_text(
            f'{text}[bfd]\ninterval-ms = {pace.interval_ms}\nmultiplier = {pace.multiplier}\npeers = ["{PEER}"]\n'
        )
        with place.appliance():
            core = place.status()["worker"]["cpu"]
            with kind.speaking(folder / "daemon", place.inside, PEER, OURS, pace, core) as daemon:
                made = Scene(place, daemon, pace)
                made.settle()
                yield made


@pytest.fixture(scope="module")
def bird(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    with scene(tmp_path_factory.mktemp("krnbf"), Bird, Pace(), "krnbf") as made:
        yield made


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """A process that does nothing for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(FROZEN_S)
    finally:
        os.kill(pid, signal.SIGCONT)


def freeze(made: Scene) -> float:
    """Freeze the worker; seconds until the daemon took it for dead, once both are up again."""
    before = len(made.daemon.falls())
    pid = made.place.status()["worker"]["pid"]
    with frozen(pid):
        began = time.time()
    falls = made.daemon.falls()
    assert len(falls) == before + 1, "the daemon has noticed, once"
    made.settle()
    assert made.place.status()["worker"]["pid"] == pid, "the same worker goes on"
    print(f"\n{type(made.daemon).__name__}, {made.pace}: noticed after {1000 * (falls[-1] - began):.0f} ms")
    return falls[-1] - began


def test_it_comes_up_with_bird_at_the_pace_asked_for(bird: Scene) -> None:
    told, before = bird.session(), bird.session()["sent"]
    time.sleep(2)
    assert (told["state"], told["remote_state"], told["interface"], told["detect_ms"]) == ("up", "up", "in0", 150)
    assert 40 <= bird.session()["sent"] - before <= 56, "50 ms less up to a quarter"
    assert bird.place.status()["bfd"] == {f"{PEER} at in0": "up"}


def test_bird_notices_a_frozen_worker_and_its_return(bird: Scene) -> None:
    took = freeze(bird)
    assert 0.09 < took < 0.25, f"{took:.3f} s"


def test_a_worker_that_is_replaced_is_not_missed(bird: Scene) -> None:
    bird.place.until_spare()
    before, pid, number = bird.session(), bird.place.status()["worker"]["pid"], bird.session()["discriminator"]
    client.ask(bird.place.socket, {"do": "replace"})
    until(lambda: bird.place.status()["worker"]["replacement"]["state"] == "done", PATIENCE_S)
    assert bird.place.status()["worker"]["pid"] != pid
    time.sleep(0.5)
    after = bird.session()
    assert (after["state"], after["flaps"], after["discriminator"]) == ("up", before["flaps"], number)
    assert after["since_s"] > 0.5 and after["sent"] > before["sent"]


def test_a_worker_that_is_killed_is_not_missed_where_a_spare_stands_by(bird: Scene) -> None:
    bird.place.until_spare()
    before, pid = bird.session(), bird.place.status()["worker"]["pid"]
    os.kill(pid, signal.SIGKILL)
    until(lambda: bird.place.status()["worker"]["pid"] not in (pid, None), 20)
    time.sleep(0.5)
    after = bird.session()
    assert (after["state"], after["flaps"]) == ("up", before["flaps"])


def test_forgeries_are_counted_by_reason_and_change_nothing(bird: Scene) -> None:
    bird.place.until_spare()
    before, counted, falls = bird.session(), bird.counters(), len(bird.daemon.falls())
    forged = forgeries(bird, before)
    with tap(bird.place.inside, "eth0") as wire:
        for _ in range(20):
            for frame in forged.values():
                wire.send(frame)
    time.sleep(0.5)
    after, recounted = bird.session(), bird.counters()
    told = {name: recounted[name] - counted[name] for name in forged}
    assert told == dict.fromkeys(forged, 20)
    assert (after["state"], after["flaps"], len(bird.daemon.falls())) == ("up", before["flaps"], falls)
    assert after["detect_ms"] == 150 and after["remote_discriminator"] == before["remote_discriminator"]


def forgeries(made: Scene, session: dict[str, Any]) -> dict[str, bytes]:
    """By the reason they are refused for: what would end the session if it were heeded."""
    good: bfd_model.Packet = {
        "version": 1, "diagnostic": 1, "state": bfd_model.DOWN, "poll": 0, "final": 0, "independent": 0, "authenticated": 0,
        "demand": 0, "multipoint": 0, "multiplier": 3, "length": 24, "mine": session["remote_discriminator"],
        "yours": session["discriminator"], "desired": 1, "required": 1, "echo": 0,
    }  # fmt: skip
    wrong = session["discriminator"] ^ 1
    return {
        "bfd_hops": forge(made, good, ttl=254),
        "bfd_unknown_session": forge(made, good | {"yours": wrong}),
        "bfd_malformed": forge(made, good | {"multiplier": 0}),
        "bfd_unknown_peer": forge(made, good, source="100.64.0.77"),
    }


def forge(made: Scene, packet: bfd_model.Packet, ttl: int = 255, source: str = PEER) -> bytes:
    """A frame with this packet, its checksums right."""
    macs = [made.place.core.mac("in0"), made.place.inside.mac("eth0")]
    raw = bfd_model.encode(packet)
    ends = b"".join(bytes(map(int, text.split("."))) for text in (source, OURS))
    udp = (50000).to_bytes(2, "big") + (3784).to_bytes(2, "big") + (32).to_bytes(2, "big")
    check = internet_checksum(ends + b"\0\x11" + udp[4:6] + udp + b"\0\0" + raw)
    head = b"\x45\xc0\0\x34\0\0\0\0" + bytes([ttl, 17])
    header = head + internet_checksum(head + b"\0\0" + ends).to_bytes(2, "big") + ends
    return (
        b"".join(bytes.fromhex(mac.replace(":", "")) for mac in macs)
        + b"\x08\0"
        + header
        + udp
        + check.to_bytes(2, "big")
        + raw
    )


def test_overload_of_data_flaps_nothing(bird: Scene) -> None:
    bird.settle()
    assert bird.place.ping() == 3, "the gateway is known"
    before, falls = bird.session(), len(bird.daemon.falls())
    first, counted = bird.place.status()["ports"][0], bird.counters()
    sent = flood(bird.place)
    last, recounted = bird.place.status()["ports"][0], bird.counters()
    after = bird.session()
    lost = sum(last["sockets"][name] - first["sockets"][name] for name in ("rx_dropped", "rx_ring_full"))
    served = recounted["forwarded_out"] - counted["forwarded_out"]
    print(f"\nsent {sent:,}, served {served:,}, lost at full rings {lost:,}: {sent / max(sent - lost, 1):.1f} times that")
    assert served > 10_000 and lost > 0.5 * sent, "this was no overload"
    assert bird.place.status()["worker"]["late_compilations"] == 0
    assert (after["state"], after["flaps"], len(bird.daemon.falls())) == ("up", before["flaps"], falls)
    assert all(last["control_sockets"][name] == 0 for name in ("rx_dropped", "rx_ring_full"))
    assert after["received"] - before["received"] > 0.5 * FLOOD_S * 1000 / 50


def flood(place: Place) -> int:
    """More packets of subscribers than can be served; how many."""
    flow = generator.Flow(*(bytes.fromhex(mac.replace(":", "")) for mac in (place.inside.mac("eth0"), place.core.mac("in0"))))
    frames = generator.frames_of(flow, FLOWS)
    with generator.generator(place.inside.name, place.inside.index("eth0"), frames) as source:
        return source.send(FLOOD_S, FLOOD_PPS).frames


def test_a_freeze_is_noticed_sooner_at_a_quicker_pace_and_a_clean_stop_is_said(tmp_path: Path) -> None:
    with scene(tmp_path, Bird, Pace(30)) as made:
        took = freeze(made)
        assert 0.05 < took < 0.2, f"{took:.3f} s"
        with tap(made.place.inside, "eth0") as wire:
            supervisor = made.place.status()["pid"]
            os.kill(supervisor, signal.SIGTERM)
            until(lambda: not alive(supervisor), 20)
            ours = [frame for frame in drain(wire) if frame[23:24] == b"\x11" and frame[36:38] == (3784).to_bytes(2, "big")]
        last = bfd_model.decode(ours[-1][42:66])
        assert (last["state"], last["diagnostic"]) == (bfd_model.ADMIN_DOWN, 7)
        until(lambda: len(made.daemon.falls()) == 2, 1)


@pytest.mark.parametrize("pace", [Pace(50), Pace(30)], ids=str)
def test_frr_notices_a_frozen_worker_and_its_return(tmp_path: Path, pace: Pace) -> None:
    with scene(tmp_path, Frr, pace) as made:
        took = freeze(made)
        assert 0.05 < took < 0.3, f"{took:.3f} s"
