"""The data path: a packet never leaves this folder. Imports numpy, numba, llvmlite and the standard library, nothing of ours.

Read in this order:

    state      every row and array of a core; the truth            verdict   every outcome, with its sentence
    burst      the packets in flight, a column per fact            wire      header fields as readers and writers
    pipeline   a burst from bytes to bytes, on a page:
      parse      the security boundary                             nat       the miss path: what makes or admits a session
      cuckoo     the index (native: its machine instructions)      firewall  rules and limits
      serve      a hit                                             tcp       the table of connection states
      rewrite    addresses, checksums, Ethernet                    icmp      errors that pass, errors of our own
      lookahead  asks for what misses will touch                   shunt     what another core must serve
      fragments  what comes in pieces, of which datagrams          cut       what leaves in pieces
      parse6     the boundary of IPv6, which is not translated     firewall6 whose it is, what opens a session, what is let in
      icmp6      its errors
    sessions   mappings and sessions: made, found, ended
      ports      blocks, derived ports, hold-down                  slabs     rows from extents
      generic    protocols without ports (protocols: their names)  sole_owner  one of whose hosts has them
      sessions6  those of IPv6: two lines, one key                 permissions  who is let in beside a session's remote
      accounts   what subscribers use
      timers     the wheel                                         journal   what a backup must be told
      neighbours next hops; hops: which one; legs: that live       events    the log, for whoever reads it
    sides      whose ports are whose                               census   do packets of a shard still come?
    records    what replicas tell each other of rows:
      gather     rows to records, in pieces                        apply     records to rows (apply_mappings, _sessions)
      digest     ranges of rows, compared
    recovery   attach to memory that another worker left: rebuild what is derived
      doubt      whether it can be believed                          resume    if so, go on at once
      invariants what must hold at any quiet moment                  signatures of frames that are met again
    shard      the loop: breaths
    frames     what rings consist of; notes: whose each frame is, where no peer can write
    rings      receive and send (atomics: cursors; calls: the kernel's), over one of two kinds:
      xsk        AF_XDP's sockets; steering (by bpf), the XDP program; selftest proves each queue
      memif      its layout; memif_rings: the rings; tap: what steering does, in user space (outcomes: of both)
    jit        `@hot`, the only way to compile; passing: how structures reach it; inlay: what only compiled code calls;
               turns: processes that share the work; bound: how Python calls what it calls all the time
"""
