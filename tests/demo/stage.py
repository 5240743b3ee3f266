"""What both walks stand on: the real model in a real registry, our daemon, the command line, and what is checked."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from tests.demo.timeline import Timeline
from tests.lab.content import files_of
from tests.lab.daemon import Daemon
from tests.lab.registry import Registry

WEIGHTS = "model.safetensors"
#: What is read first.
FIRST = 1 << 20
#: The share of the model that may have crossed the wire when that was read, where bytes come when they are read.
MOST_AT_FIRST = 0.10


class NotAsPromised(Exception):
    """The demo saw something other than what it set out to show."""


@dataclass(frozen=True, slots=True)
class Stage:
    """What runs while the demo plays. `model` is the folder that was packed, `reference` what it was pushed as."""

    console: Console
    registry: Registry
    daemon: Daemon
    model: Path
    reference: str

    @property
    def size(self) -> int:
        return sum((self.model / name).stat().st_size for name in files_of(self.model))

    def timeline(self) -> Timeline:
        """From now on: nothing that crossed the wire before counts."""
        self.registry.forget()
        return Timeline(self.registry.bytes_served, self.size)

    def cli(self, *words: str | Path) -> str:
        """What `modelvold WORDS…` says: its answer, else how it went."""
        ran = self.daemon.cli(*words)
        check(ran.returncode == 0, f"modelvold {words[0]} failed with status {ran.returncode}: {ran.stderr.strip()}")
        return ran.stdout or ran.stderr

    def show(self, *words: str | Path) -> None:
        """`cli`, on the console as a person would see it."""
        self.tell(f"$ modelvold {' '.join(str(word) for word in words)}")
        if said := self.cli(*words).rstrip():
            self.tell(said)

    def tell(self, text: str = "") -> None:
        """Lines, however long, as they are."""
        self.console.print(text, markup=False, soft_wrap=True)

    def check_first(self, sha256: str) -> None:
        """Of the weights' first bytes, `FIRST` of them."""
        check(sha256 == sha256_of(self.model / WEIGHTS, FIRST), "the first MiB differs from the source")

    def check_all(self, sums: dict[str, str]) -> None:
        """`sums` are the sha256 of every file that was found, by its path."""
        source = {name: sha256_of(self.model / name) for name in files_of(self.model)}
        check(sums == source, "the files that were read differ from the source")


def packed(console: Console, registry: Registry, daemon: Daemon, model: Path) -> Stage:
    """The stage, with `model` pushed as its reference."""
    stage = Stage(console, registry, daemon, model, f"{registry.host}/models/all-minilm-l6-v2:v1")
    stage.cli("pack", model, "-t", stage.reference, "--push")
    stage.tell(f"packed and pushed {stage.size:,} bytes as {stage.reference}, one raw ModelPack layer a file")
    return stage


def check(is_so: bool, otherwise: str) -> None:
    if not is_so:
        raise NotAsPromised(otherwise)


def sha256_of(path: Path, length: int = -1) -> str:
    """Of the first `length` bytes, or of all."""
    with path.open("rb") as file:
        return hashlib.sha256(file.read(length)).hexdigest()
