"""State on a backup core, sent by the very thread that forwards (comes with its own issue).

What it will ship is there already: `shards.journal` writes dirty bits and tombstones, rows carry shard, epoch and generation.
"""
