"""modelvold: a node daemon that mounts AI models from OCI registries lazily."""

__version__ = "0.1.0"
