"""What OCI says, as values: digests, references, documents, model formats. Pure: bytes in, values out, no I/O."""
