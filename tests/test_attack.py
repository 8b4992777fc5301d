"""`bench attack`: its frames are what they are meant to be, and in small, through a real appliance, others lose nothing."""

from __future__ import annotations

import numpy as np
import pytest

from bench import attack, traffic
from bench.attack import Plan
from bench.generator import FRAME_BYTES, Flow
from tests import frames

FLOW = Flow(bytes([2, 0, 0, 0, 0, 1]), bytes([2, 0, 0, 0, 0, 2]))


def test_frames_are_what_they_are_meant_to_be() -> None:
    mixed = attack.mixed(FLOW, Plan(flows=1000, known=100)).reshape(-1, attack.PARTS, FRAME_BYTES)
    assert (traffic.ip_sum(mixed.reshape(-1, FRAME_BYTES)) == 0xFFFF).all()
    for part in (0, 1, 3):
        whole = [frames.dissect(frames.split_frame(frame.tobytes())[4]) for frame in mixed[:, part]]
        assert all(packet.residue == 0 for packet in whole)
        assert len({(p.source, p.source_port, p.destination, p.destination_port) for p in whole}) == (600, 1000, 0, 1000)[part]
    pieces = [frames.dissect_header(frames.split_frame(frame.tobytes())[4]) for frame in mixed[:, 2]]
    assert {piece.fragment for piece in pieces} == {0x2000, 100} and len({piece.id for piece in pieces}) == 500


@pytest.mark.lab
def test_rfc6888_req5_attackers_are_named_and_others_lose_nothing() -> None:
    plan = Plan(flows=20_000, seconds=3.0, pace=20_000, calm_s=0.5, known=2000)
    told = {result.name: result for result in attack.attack(plan, lambda _: None, "attk")}
    lost, full = told["attack/good/lost"].value, told["attack/ring_full"].value
    assert lost <= full, f"{lost} packets of the others were lost, {full} of all found no room in a ring"
    wanted = (
        "good/refused",
        "opener/refused",
        "fragments/refused",
        "scan/refused",
        "named",
        "opener/sessions",
        "told",
        "events",
    )
    assert [name for name in wanted if not told[f"attack/{name}"].ok] == []
    assert np.isfinite([result.value for result in told.values()]).all()
