"""What we hold: segment files, the catalog of what survives, and the proof of both.

    <root>/
      lock                                      flocked for the daemon's life: one writer (rule 3)
      catalog.db                                SQLite, WAL, synchronous=FULL (rule 2)
      content/<source>/sha256/ab/<hex>.raw/     bytes not yet verified, seen by the source they came from alone (rule 6)
              verified/sha256/ab/<hex>.raw/     bytes whose digest matched, shared
                 00000 00001 …                  segments: each grows by appending until it is its length rounded up to 512
                 whole/0 1 …                    for the backend `directory`, the layer's files; what is in them has left the segments
      volumes/<id>.erofs                        a volume's tree; its devices are segments
              <id>.tree/                        for the backend `directory`, the tree itself: hard links to whole files
      snapshots/<n>/{fs,work}                   the snapshotter's

While the daemon runs a segment file's size is the record of what is present. What survives a restart is a segment's row with its
xxhash: it is written after the bytes were synced, and removed, synced, before they are truncated. So a crash may lose a record and
never invent one.
"""
