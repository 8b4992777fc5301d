"""Figures, always with their environment, their spread and a loss beside them: memory, memif and veth are never mixed.

Read `report` (what a result is, and the command that each bench becomes), `environment`, `traffic` (established flows) and
`flows` (new ones); then a bench: `tables` (the index), `path`, `connections`, `memory`, `scale`, `memif`, `wire`; then `all`,
with `plots`, and `compare`.
`test_*.py` are index and path under pytest-benchmark. docs/benches.md says what each shows and how to read it.
"""
