"""SOCI, a peer that reads OCI images lazily: soci-snapshotter of Debian as the snapshotter of a containerd of our own.

What Debian has is 0.4.1, of December 2023: its index is an artifact beside the image, found here by its digest (`soci image rpull
--soci-index-digest`), as its own documentation does it. What it takes to run it:

- It indexes gzip layers alone. Ours are made of stored blocks, which is what any level makes of bytes that cannot be compressed,
  as weights cannot: they cost it next to nothing to inflate.
- It fetches an index by HTTPS whatever the host, and layers by HTTP from a loopback address whatever the scheme: so it gets a
  registry of its own, with TLS, under the one address that leads to loopback and is none, 0.0.0.0.
- Its command line knows one place only, /var/lib/soci-snapshotter-grpc, which is taken away at the end. Where it exists somebody
  else's SOCI lives here, and ours does not run.
- Without fusermount it mounts FUSE by itself, as root.

What is read is what a container reads: the image's snapshot, an overlay of SOCI's mounts, where `ctr images mount` puts it.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import ipaddress
import os
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.lab import debian, documents
from tests.lab.ca import Authority, Pair
from tests.lab.containerd import Containerd
from tests.lab.mounts import unmount_below
from tests.lab.program import Program
from tests.lab.registry import Registry

HOME = Path("/var/lib/soci-snapshotter-grpc")
PACKAGE = "soci-snapshotter"
_ANYWHERE = "0.0.0.0"
_GZIP = 31  # zlib's wbits for gzip's header and trailer
_TIMEOUT = 600


def missing() -> str:
    """What keeps SOCI from running here, in one line; empty if nothing seen does."""
    if os.geteuid() != 0:
        return "not root: it mounts FUSE and overlays"
    if not Path("/dev/fuse").exists():
        return "no /dev/fuse"
    if HOME.exists():
        return f"{HOME} exists: another SOCI lives on this machine"
    try:
        debian.soci_snapshotter(), debian.containerd()
    except debian.Unavailable as reason:
        return str(reason)
    return ""


class File(Protocol):
    """What a layer is made of; a Generated is one."""

    @property
    def size(self) -> int: ...

    def blocks(self) -> Iterator[bytes]: ...


@dataclass(frozen=True, slots=True)
class Image:
    """`index` is the digest of its SOCI index, in the same repository."""

    reference: str
    index: str


class SociRegistry(Registry):
    """A docker-registry with TLS, whose certificate is good for 0.0.0.0."""

    def __init__(self, folder: Path) -> None:
        self.roots = _Authority(folder / "ca")
        super().__init__(folder, authority=self.roots)

    def push_image(self, repository: str, files: Mapping[str, File], folder: Path) -> Image:
        """An image of one gzip layer a file, below /model, with an index made and pushed by `soci`; `folder` is for its work."""
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            pushed = list(threads.map(lambda path: self._push_layer(repository, path, files[path]), files))
        diff_ids = [diff_id for _, diff_id in pushed]
        layers = [{**layer, "mediaType": f"{documents.IMAGE_LAYER}+gzip"} for layer, _ in pushed]
        config = self.push.described(repository, documents.image_config(diff_ids))
        self.push.manifest(repository, "v1", documents.image_manifest(config, layers))
        reference = f"{_ANYWHERE}:{self.port}/{repository}:v1"
        with _home(), _Containerd(folder, folder / "none.sock") as containerd:
            tools = _Tools(containerd, self)
            tools.ctr("content", "fetch", reference)
            tools.soci("create", "--min-layer-size", "0", reference)
            digest = tools.soci("index", "list", "-q").split()[0]
            tools.soci("push", reference)
        shutil.rmtree(folder)
        return Image(reference, digest)

    def _push_layer(self, repository: str, path: str, file: File) -> tuple[documents.Document, str]:
        """The layer's digest and size, and its diffID."""
        summed = hashlib.sha256()

        def packed() -> Iterator[bytes]:
            gzip = zlib.compressobj(0, wbits=_GZIP)
            for block in _tar(f"model/{path}", file):
                summed.update(block)
                yield gzip.compress(block)
            yield gzip.flush()

        layer = self.push.stored(repository, packed())
        return layer, f"sha256:{summed.hexdigest()}"


class Soci:
    """`with Soci(folder, registry) as soci: soci.show(image, where)`: both daemons, with nothing of any image."""

    def __init__(self, folder: Path, registry: SociRegistry) -> None:
        self._folder = folder
        self._containerd = _Containerd(folder / "containerd", folder / "soci.sock")
        self._tools = _Tools(self._containerd, registry)
        self._life = ExitStack()
        self._program = Program(
            "soci-snapshotter",
            [
                *(debian.soci_snapshotter(), "--root", HOME),
                *("--address", folder / "soci.sock", "--config", folder / "soci.toml"),
            ],
            folder / "soci.log",
            (folder / "soci.sock").exists,
            self._tools.environment,
        )

    @property
    def pid(self) -> int:
        """Of the snapshotter, which serves FUSE."""
        return self._program.pid

    def show(self, image: Image, where: Path) -> Path:
        """Pulls, and mounts what a container would see; the folder of its files."""
        self._tools.soci("image", "rpull", "--soci-index-digest", image.index, image.reference)
        where.mkdir()
        self._tools.ctr("images", "mount", "--snapshotter", "soci", image.reference, where)
        return where / "model"

    def log_text(self) -> str:
        return self._program.log.read_text(errors="replace")

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "soci.toml").touch()
        with ExitStack() as life:
            life.enter_context(_home())
            life.enter_context(self._program)
            life.callback(unmount_below, HOME)  # while it still answers for them
            life.enter_context(self._containerd)
            life.callback(unmount_below, self._folder)
            self._life = life.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._life.close()


@contextmanager
def _home() -> Iterator[None]:
    """The one place that `soci` knows, for as long as it takes."""
    HOME.mkdir()
    try:
        yield
    finally:
        unmount_below(HOME)
        shutil.rmtree(HOME, ignore_errors=True)


class _Containerd(Containerd):
    """With SOCI behind `socket` as a snapshotter beside overlayfs; its clients pull, so it needs no sandbox image."""

    def __init__(self, root: Path, socket: Path) -> None:
        super().__init__(root, "none")
        self._snapshotter = socket

    def _configuration(self) -> str:
        proxy = f'\n[proxy_plugins.soci]\ntype = "snapshot"\naddress = "{self._snapshotter}"\n'
        return super()._configuration() + proxy


class _Tools:
    def __init__(self, containerd: Containerd, registry: SociRegistry) -> None:
        self.environment = {
            "SSL_CERT_FILE": str(registry.roots.certificate),
            "DOCKER_CONFIG": str(containerd.root / "none"),
        }
        self._socket = containerd.socket

    def soci(self, *words: str | Path) -> str:
        return self._run(debian.soci_snapshotter().parent / "soci", *words)

    def ctr(self, *words: str | Path) -> str:
        return self._run(debian.containerd().parent / "ctr", *words)

    def _run(self, program: Path, *words: str | Path) -> str:
        ran = subprocess.run(
            [str(word) for word in (program, "--address", self._socket, *words)],
            env={**os.environ, **self.environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
        assert ran.returncode == 0, f"{program.name} {' '.join(map(str, words))}: {ran.stderr[-2000:]}"
        return ran.stdout


class _Authority(Authority):
    """Its servers' certificates are good for 0.0.0.0 too."""

    def issue(self, name: str, *, client: bool = False) -> Pair:
        assert not client
        key, now = ec.generate_private_key(ec.SECP256R1()), dt.datetime.now(dt.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = x509.SubjectAlternativeName(
            [x509.IPAddress(ipaddress.ip_address(_ANYWHERE)), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        signed = (
            x509.CertificateBuilder(self._name, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(minutes=5))
            .not_valid_after(now + dt.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        pair.key.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain))
        pair.key.chmod(0o600)
        return pair


def _tar(path: str, file: File) -> Iterator[bytes]:
    member = tarfile.TarInfo(path)
    member.size = file.size
    yield member.tobuf(tarfile.GNU_FORMAT)
    yield from file.blocks()
    yield bytes(-member.size % tarfile.BLOCKSIZE + 2 * tarfile.BLOCKSIZE)
