"""The benches measure what they say: small ones, for their verification and their shape; never for their speed."""

from __future__ import annotations

import json
import mmap
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from bench import all as all_benches
from bench import compare, environment, path, report, traffic
from krononat.cli.bench import bench
from krononat.client import Trouble
from shards.jit import PURE
from shards.state import TCP, UDP


def small(protocol: int = UDP) -> traffic.Scene:
    return traffic.build(64, 256, protocol=protocol) if PURE else traffic.build(1000, 4096, protocol=protocol)


def test_half_of_the_sessions_are_a_backups() -> None:
    state = small().state
    sessions = state.shards["sessions"]
    assert sessions.sum() > 0 and abs(int(sessions[0]) - int(sessions[1])) <= traffic.PORTS_EACH
    assert state.shards["side"].tolist() == [0, 1]


def test_flows_fill_an_index_to_its_load() -> None:
    flows = traffic.flows_at_load(1000 if PURE else 10_000)
    state = traffic.build(flows, flows).state
    assert 0.795 < int(state.core[0]["index_entries"]) / (8 * len(state.tags)) <= traffic.LOAD


def test_the_path_and_the_bare_lookup_take_turns() -> None:
    rows = 256 if PURE else 4096
    turns = path.measure(rows // 4, TCP, 2, rows)
    assert len(turns.path) == len(turns.lookup) == 2 and turns.loss == 0


@pytest.mark.parametrize("protocol", [UDP, TCP])
def test_every_flow_is_translated_and_verified(protocol: int) -> None:
    scene = small(protocol)
    original = scene.frames.copy()
    rows = len(scene.order)
    traffic.run(scene.state, scene.frames, scene.burst, rows, 2, traffic.NOW + 1000)
    path.verify(scene, traffic.packets_of(original), traffic.packets_of(scene.frames))


@pytest.mark.parametrize("at", [22, 24, 30, 41, 55])
def test_a_wrong_byte_is_seen(at: int) -> None:
    scene = small()
    original = scene.frames.copy()
    traffic.run(scene.state, scene.frames, scene.burst, len(scene.order), 2, traffic.NOW + 1000)
    traffic.packets_of(scene.frames)[6, at] ^= 1
    with pytest.raises(RuntimeError, match="wrong in 1 of"):
        path.verify(scene, traffic.packets_of(original), traffic.packets_of(scene.frames))


def test_results_have_one_shape() -> None:
    result = report.Result("path/udp/10k/rate", 1.5, "M/s", 1.0, 2.0, loss=0.0)
    told = json.loads(report.as_json([result], environment.before("memory")))
    assert told["results"] == [asdict(result)]
    assert set(told["results"][0]) == {"name", "value", "unit", "low", "high", "goal", "ok", "loss"}
    assert told["env"]["cpu"] and told["env"]["kind"] == "memory"


# --- figures --------------------------------------------------------------------------------------------------------------


def test_a_figure_is_the_median_of_its_samples_with_their_spread() -> None:
    assert report.measured("a", "M/s", [3, 1, 2], goal=2) == report.Result("a", 2, "M/s", 1, 3, 2, True)
    assert report.measured("a", "M/s", [1.9], goal=2).ok is False


@pytest.mark.parametrize("unit", report.LESS_IS_BETTER)
def test_a_goal_is_reached_from_the_side_of_its_unit(unit: str) -> None:
    assert report.measured("a", unit, [160], goal=160).ok and not report.measured("a", unit, [161], goal=160).ok
    assert "≤ 160" in report.cells(report.measured("a", unit, [160], goal=160))


@pytest.mark.parametrize(("number", "told"), [(0, "0.00"), (0.1, "0.10"), (0.0042, "0.0042"), (1234.567, "1,234.57")])
def test_figures_are_for_people(number: float, told: str) -> None:
    assert report.figure(number) == told


def test_a_ratio_is_of_neighbours_in_time() -> None:
    ratio = report.ratio("a", ours=[2, 9, 30], theirs=[1, 3, 10], goal=3)
    assert (ratio.value, ratio.low, ratio.high, ratio.unit, ratio.ok) == (3, 2, 3, "x", True)
    with pytest.raises(ValueError, match="zip"):
        report.ratio("a", [1, 2], [1])


# --- commands -------------------------------------------------------------------------------------------------------------


def run_two(quick: bool, told: report.Told) -> list[report.Result]:
    told("quickly" if quick else "at leisure")
    return [report.measured("two/rate", "M/s", [1, 2, 3], goal=4, loss=0.25), report.measured("two/size", "B", [5])]


two = report.command("two", "memory", run_two, "Measure two.")


def test_a_bench_prints_json_and_tells_where_it_is() -> None:
    done = CliRunner().invoke(two, ["--quick", "-o", "json"])
    told = json.loads(done.stdout)
    assert done.exit_code == 0, "a missed goal is told, not a failure"
    assert [result["name"] for result in told["results"]] == ["two/rate", "two/size"] and told["results"][0]["ok"] is False
    assert told["env"]["bench"] == "two" and told["env"]["quick"] and told["env"]["seconds"] >= 0
    assert done.stderr == "two: quickly\n"


def test_a_missed_goal_is_an_exit_status_on_demand() -> None:
    assert CliRunner().invoke(two, ["--strict"]).exit_code == 1


def test_a_bench_prints_a_table() -> None:
    out = CliRunner().invoke(two).stdout
    assert out.startswith("memory: ") and " pages, load " in out
    assert out.splitlines()[2].split() == ["two/rate", "2.00", "1.00", "3.00", "M/s", "≥", "4", "no", "0.25"]


def test_what_a_bench_lacks_is_told_with_its_exit_status() -> None:
    def lacking(quick: bool, told: report.Told) -> list[report.Result]:
        raise Trouble("no root", "namespaces need it", "try again as root", status=77)

    done = CliRunner().invoke(report.command("lacking", "veth", lacking, "Measure nothing."), [])
    assert (done.exit_code, done.stdout) == (77, "")
    assert done.stderr == "krononat: no root\n  why:  namespaces need it\n  next: try again as root\n"


def test_the_environment_says_what_figures_depend_on() -> None:
    env = environment.after(environment.before("veth", quick=True), 1.25)
    assert set(compare.DECISIVE) <= set(env)
    assert env["kind"] == "veth" and env["quick"] and env["seconds"] == 1.2 and env["steal_ticks"] >= 0
    assert env["load_before"] >= 0 and env["load_after"] >= 0 and env["governor"] and env["caches"]
    with pytest.raises(ValueError, match="memory, memif, veth"):
        environment.before("nic")


def test_resident_memory_is_that_of_one_mapping() -> None:
    memory = mmap.mmap(-1, 8 << 20, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    array[: 3 << 20] = 1
    assert environment.resident(array) == (3 << 20, 0)


# --- all of them ----------------------------------------------------------------------------------------------------------


def outcome(name: str, *results: report.Result) -> all_benches.Outcome:
    return all_benches.Outcome(name, list(results), {"bench": name, **environment.before("memory")})


def test_every_bench_is_a_command() -> None:
    assert set(all_benches.ORDER) < set(bench.places) and set(bench.places) - set(all_benches.ORDER) == {
        "all", "compare", "show", "events", "overload", "rooms"
    }  # fmt: skip


def test_a_bench_that_fails_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    def run(name: str, quick: bool, told: report.Told) -> all_benches.Outcome:
        told(f"{name} at work")
        result = report.measured(f"{name}/rate", "M/s", [1, 2], 1, loss=0.5)
        return all_benches.Outcome(name, [], {}, "needs root") if name == "second" else outcome(name, result)

    outcomes = all_benches.collect(["first", "second", "third"], True, run)
    assert [each.bench for each in outcomes] == ["first", "second", "third"]
    all_benches.write(tmp_path / "report", outcomes)
    told = json.loads((tmp_path / "report" / "result.json").read_text())
    assert [result["name"] for result in told["results"]] == ["first/rate", "third/rate"]
    assert told["env"]["failed"] == {"second": "needs root"} and set(told["env"]["benches"]) == {"first", "third"}
    assert json.loads((tmp_path / "report" / "env.json").read_text()) == told["env"]
    written = (tmp_path / "report" / "report.md").read_text()
    assert "needs root" in written and "| first/rate | 1.50 | 1.00 | 2.00 | M/s | ≥ 1 | yes | 0.5 |" in written


@pytest.mark.parametrize(("reasons", "strict", "status"), [
    (["", ""], False, 0), (["", ""], True, 1), (["x", ""], False, 6), (["x", "y"], False, 1),
])  # fmt: skip
def test_the_exit_status_says_whether_all_were_run(reasons: list[str], strict: bool, status: int) -> None:
    missed = report.measured("a/rate", "M/s", [1], goal=2)
    outcomes = [all_benches.Outcome("a", [] if reason else [missed], {}, reason) for reason in reasons]
    assert all_benches.status_of(outcomes, strict) == status


def test_a_report_that_cannot_be_written_is_told_before_anything_runs(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Trouble, match="no report can be written") as trouble:
        all_benches.everything(["--report", str(tmp_path / "file" / "report")], standalone_mode=False)
    assert "--report" in trouble.value.remedy


def test_a_bench_runs_in_a_process_of_its_own_and_its_reason_is_heard() -> None:
    heard: list[str] = []
    missing = all_benches.perform("no-such-bench", True, heard.append)
    assert "no-such-bench" in missing.reason and not missing.results and heard


def test_the_reason_is_what_an_exception_says() -> None:
    said = [
        "warning",
        "Traceback (most recent call last):",
        '  File "x.py", line 1',
        "    f()",
        "RuntimeError: wrong in 1 of 2",
        "row 7",
    ]
    assert all_benches._reason(said) == "RuntimeError: wrong in 1 of 2\nrow 7"
    assert all_benches._reason(["krononat: no root", "  why:  so"]) == "krononat: no root\n  why:  so"
    assert all_benches._outcome("a", 3, "", []).reason == "it ended with status 3 and said nothing"


def test_plots_show_every_figure_and_are_reproducible(tmp_path: Path) -> None:
    plots = pytest.importorskip("bench.plots", exc_type=ImportError)
    results = [report.measured("a/rate", "M/s", [1, 2, 3], 4, loss=0.5), report.measured("a/ratio", "x", [0.5, 1.5])]
    for name in ("one", "two"):
        plots.draw(results, "what was measured", tmp_path / name)
    drawn = (tmp_path / "one").read_text()
    assert drawn == (tmp_path / "two").read_text()
    assert all(text in drawn for text in ("a/rate", "a/ratio", "2.00, loss 0.5", "what was measured", "more is better"))


# --- compare --------------------------------------------------------------------------------------------------------------


def rate(*samples: float, loss: float | None = None, name: str = "a/rate") -> report.Result:
    return report.measured(name, "M/s", samples, loss=loss)


@pytest.mark.parametrize(("before", "after", "expected"), [
    (rate(9, 10, 11), rate(12, 13, 14), "better"),
    (rate(9, 10, 11), rate(6, 7, 8), "worse"),
    (rate(9, 10, 11), rate(10.9, 12, 13), "same"),  # the spreads overlap
    (rate(10), rate(10.1), "same"),  # no spread, 1 %
    (rate(10), rate(9), "worse"),
    (rate(10, loss=0.0), rate(20, loss=0.1), "worse"),
    (rate(10, loss=0.1), rate(10, loss=0.0), "same"),
    (rate(10, loss=0.0), rate(10, loss=0.001), "worse"),
    (rate(10, loss=0.0, name="wire/a"), rate(10, loss=0.004, name="wire/a"), "same"),  # a search bears it
    (rate(10, loss=0.0, name="wire/a"), rate(10, loss=0.006, name="wire/a"), "worse"),
    (report.measured("a", "us", [10]), report.measured("a", "us", [20]), "worse"),
    (report.measured("a", "B", [160]), report.measured("a", "B", [134]), "better"),
    (rate(0), rate(0), "same"),
    (rate(0), rate(1), "better"),
])  # fmt: skip
def test_what_changed_beyond_the_noise(before: report.Result, after: report.Result, expected: str) -> None:
    told = compare.changes(compare.Measured({"a": before}, {}), compare.Measured({"a": after}, {}))
    assert [change.verdict for change in told] == [expected]


def test_what_is_new_and_what_is_gone() -> None:
    a, b, c = (report.measured(name, "M/s", [1]) for name in "abc")
    found = compare.changes(compare.Measured({"a": a, "b": b}, {}), compare.Measured({"c": c, "a": a}, {}))
    assert [(change.name, change.verdict) for change in found] == [("c", "new"), ("a", "same"), ("b", "gone")]


def test_reports_and_single_benches_are_compared(tmp_path: Path) -> None:
    other_figure = report.measured("c/rate", "M/s", [1])
    failed = all_benches.Outcome("b", [], {}, "needs root")
    all_benches.write(tmp_path / "whole", [outcome("a", rate(10)), failed, outcome("c", other_figure)])
    env = {"bench": "a", **environment.before("memory")}
    (tmp_path / "single.json").write_text(report.as_json([rate(5)], env))
    (tmp_path / "other.json").write_text(report.as_json([rate(10)], {**env, "cpu": "another"}))
    paths = [str(tmp_path / name) for name in ("whole", "single.json", "other.json")]

    worse = CliRunner().invoke(compare.compare, [paths[0], paths[1], "-o", "json", "--strict"])
    assert worse.exit_code == 1 and worse.stderr == ""
    assert json.loads(worse.stdout)["changes"] == [
        {"name": "a/rate", "before": 10, "after": 5, "unit": "M/s", "change": -0.5, "verdict": "worse"}
    ], "c/rate is not gone: its bench is not in the file"
    assert CliRunner().invoke(compare.compare, paths[:2]).exit_code == 0
    assert "-50.0 %" in CliRunner().invoke(compare.compare, paths[:2]).stdout

    other = CliRunner().invoke(compare.compare, [paths[0], paths[2], "--strict"])
    assert other.exit_code == 0 and "none of 1 figures changed" in other.stdout
    assert "NOT COMPARABLE: a was measured with cpu" in other.stderr


@pytest.mark.parametrize("text", ["", "[]", '{"results": [{"name": "a"}], "env": {}}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(Trouble, match="cannot be compared"):
        compare.read(tmp_path)
    with pytest.raises(Trouble, match="cannot be compared"):
        compare.read(tmp_path / "nothing")
