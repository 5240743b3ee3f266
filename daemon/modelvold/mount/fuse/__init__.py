"""Volumes through FUSE: a process of its own that answers the kernel from a volume's image and its segments, and asks the daemon for
what is missing.

Of that process, from below: `files` are the segments' descriptors, `shelf` is which volumes are shown and what of them is open, `reads`
the life of a read, which may wait for bytes for as long as it takes, and `kernel` the loop that takes the kernel's requests. A read of
missing bytes is an entry in a table and no thread.

Node numbers: 1 is the root of the mount; an inode of a volume is the volume's number in the upper half and the image's in the lower.
"""
