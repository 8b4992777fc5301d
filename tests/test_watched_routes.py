"""What is told of changed routes: how long the switches took is theirs alone, the story is of the routers beside them, too."""

from __future__ import annotations

from bench.cluster.routes import Change, Watch


def test_routers_are_in_the_story_and_not_in_the_span() -> None:
    seen = Watch([])
    seen._names = frozenset({"ain", "aout"})
    seen.changes += [
        Change(at * 1_000_000, name, "default") for at, name in ((1, "ain"), (5, "ain"), (9, "aout"), (12, "access"))
    ]
    assert seen.span_ms(2_000_000) == 4.0 and seen.span_ms(10_000_000) == 0.0
    assert seen.story(5_000_000) == ["0 ms ain: default", "4 ms aout: default", "7 ms access: default"]
