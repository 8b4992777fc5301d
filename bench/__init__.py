"""Figures, always with their environment and a loss beside them: memory, veth and NIC are never mixed.

Read `report` (what a result is), `traffic` (established flows in memory), `path` and `tables` (the benches); `test_*.py` are
the same for pytest-benchmark.
"""
