"""A shard's state on a second core, sent by the very thread that forwards, and who has the authority over it.

Read in this order:

    protocol    the words that mechanism and policy share: peer, evidence, lag, what may be asked of the exchange
    frames      what travels: header and body; every reason to refuse one
    tables      what is sent and taken, as the exchange sees it: Source, Sink      rows    the same over a core's memory
    harvest     all that changed in all shards, compiled
    exchange    the mechanism on a page; below it, on the way out and on the way in:
      publisher   copies and changes, for each shard and peer       subscriber  whose rows of a shard are taken
      sender      a life of the link, numbers, what is in flight    receiver    the same from the other side
      lanes       links whose turns are compiled: nothing but changes and acknowledgements
      steady      that turn             calls       of ZeroMQ's functions             checksum    CRC-32
      link        sockets, keys, connections that begin and end     keys        CURVE keys and their files
    verify      whether two copies are the same, while packets change them
    roles       the policy: what a core is to a shard, a drawn table                quiet   no packets for a while?
    migration   a move from one core to another, step by step                       addresses   does its target know them all?
    conduct     roles and moves, carried out through the exchange
    placement   which shard should be where: plans for drain, undrain, rebalance

Imports `shards`, never `krononat`.
"""
