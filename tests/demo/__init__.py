"""`make demo`: a real container reads a real model through a real containerd, and shows what crossed the wire when."""
