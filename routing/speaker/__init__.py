"""The sessions with the switches, held by one process per server for all of its cores.

Read in this order:

    sessions   what the speaker is told: which session carries which core's routes (the plan, a JSON file)
    ledger     pure: what the cores want said, what was said, the difference; who is alive
    exabgp     ExaBGP's configuration, commands and answers, as text
    launch     ExaBGP's process: as it comes, but more patient with switches that are away
    keeper     that process, started anew when it dies

`routing.helper` is the process between the cores and ExaBGP. Another speaker takes ExaBGP's place by a module with the three
functions of `exabgp` that the helper calls (`announce`, `withdraw`, `read`) and a `configuration` for the keeper.
"""
