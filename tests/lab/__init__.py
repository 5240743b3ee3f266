"""Real servers and a real container runtime, on loopback and in folders of their own, for tests, demo and bench."""
