"""The façade: a small read-only OCI registry on loopback that shows models as images.

containerd is told (in `hosts.toml`) to ask here first. For a model it is answered with the model's synthetic image,
which the snapshotter recognises; for anything else it is sent on to the registry it meant.
"""

from modelvold.facade.ports import Given, Upstream
from modelvold.facade.server import Facade

__all__ = ["Facade", "Given", "Upstream"]
