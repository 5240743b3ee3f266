"""`make demo`: a real model through a real registry and our daemon, and what crossed the wire when.

Two walks on one stage: `pod`, where a container reads the model through a private containerd while its bytes arrive, and
`folder`, which needs neither root nor a kernel feature. `__main__` chooses.
"""
