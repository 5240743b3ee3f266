"""containerd's snapshots: the ten verbs of its contract, and the protocol by which a model's layer needs no pull.

A snapshot's life, as rows of the metastore:

    Prepare ──▶ active ──Commit──▶ committed ◀── Prepare of a model's layer: it is never active, but committed at
    View ─────▶ view                             once, and stands for a volume

The database is the truth and the folders are swept to it. What a verb returns is a mount's description; containerd
mounts.
"""
