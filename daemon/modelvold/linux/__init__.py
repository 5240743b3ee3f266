"""System calls that Python lacks, one typed function each. They raise OSError and decide nothing.

The C library is loaded with `ctypes.CDLL`, which drops the GIL for a call: a mount or a read can raise an event that
another thread of this process must answer, so a call that kept the GIL would wait for ever.
"""
