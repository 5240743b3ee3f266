"""Generated; see tests/lab/cri.py for how."""
