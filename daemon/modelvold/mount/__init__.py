"""How volumes are shown: the probe that says what this machine can do, the gate where the kernel asks for bytes and waits, the
backends, and the table of what is mounted."""
