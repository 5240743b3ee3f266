"""What a file of a model's folder is for, by its name, and the order in which files are shown and packed. Pure.

The classes and the order in which they are asked (configuration, weights, code, documents) are those of
ModelPack's packers, so that the same folder packed by different tools gives the same layers. A name no list knows
is a weight from 128 MiB on, code below.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from modelvold.oci.media_type import Role

_UNKNOWN_IS_WEIGHT_FROM = 128 << 20


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_CONFIG = _words("""
    json jsonl json5 jsonc yaml yml toml ini config cfg conf properties props prop xml xsd rng modelcard meta hparams
    params hyperparams wandb mlflow tensorboard
""")
_WEIGHT = _words("""
    safetensors bin pt pth mar pte pt2 ptl tflite h5 hdf hdf5 pb index gguf ggml ggmf ggjt q4_0 q4_1 q5_0 q5_1 q8_0 f16
    f32 ckpt checkpoint dist_ckpt tensor weights state embedding vocab ot engine trt onnx msgpack model pkl pickle keras
    joblib npy npz nc mlmodel coreml mleap surml llamafile caffemodel prototxt dlc circle nb
""")
_CODE = _words("""
    py ipynb sh patch c h hxx cpp cc cxx c++ hpp hh h++ java js mjs cjs jsx ts tsx go rs swift rb php scala kt kts r m
    mm f f90 f95 f03 f08 jl lua pl pm cs vb dart groovy elm erl hrl ex exs hs lhs clj cljs cljc cl lisp lsp scm ss rkt
    sql psql mysql sqlite zig cu cuh bash zsh fish csh tcsh ksh ps1 psm1 psd1 bat cmd vbs wsf applescript scpt awk sed
    expect env dockerfile mk cmake gradle sbt mill bazel bzl buck ninja gyp gypi waf gemspec so dll dylib lib a
""")
_DOC = _words("""
    txt md pdf log doc docx docm dot dotx dotm rtf odt ott fodt pages wpd xls xlsx xlsm xlsb xlt xltx ods ots fods
    numbers csv ppt pptx pptm pps ppsx ppsm pot potx potm odp otp fodp key epub mobi azw azw3 fb2 fb3 lit pdb djvu djv
    html htm xhtml mhtml mht xsl xslt tex latex ltx bib rst asciidoc adoc textile wiki mediawiki org texi texinfo info
    man chm hlp xps jpg jpeg png gif bmp tiff ico webp heic heif hevc svg mp4 mov avi mkv webm m4v flv wmv mpg mpeg
""")
_CODE_NAMES = _words("""
    makefile* dockerfile* cmakelists.txt build* workspace* buck* wscript* requirements*.txt pipfile* gemfile* *.env.*
    yarn.lock poetry.lock cargo.lock composer.lock mix.lock rebar.lock go.mod go.sum
""")

#: Suffixes and whole-name patterns of each class, in lower case, in the order in which they are asked.
_CLASSES: tuple[tuple[Role, frozenset[str], frozenset[str]], ...] = (
    (Role.WEIGHT_CONFIG, _CONFIG, _words("*tokenizer.model* config.json.*")),
    (Role.WEIGHT, _WEIGHT, _words("*.data-*")),
    (Role.CODE, _CODE, _CODE_NAMES),
    (Role.DOC, _DOC, _words("license* readme* setup* *requirements*")),
)
#: The order of layers in a manifest: what an engine reads first comes first.
_ORDER = {Role.WEIGHT_CONFIG: 0, Role.WEIGHT: 1, Role.CODE: 2, Role.DOC: 3}
_DIGITS = re.compile(r"([0-9]+)")


def role_of(path: str, size: int) -> Role:
    """The class of the file at `path` (`/` between components) of `size` bytes; upper and lower case are the same."""
    name = path.rpartition("/")[2].lower()
    _, dot, suffix = name.rpartition(".")
    for role, suffixes, patterns in _CLASSES:
        if (dot and suffix in suffixes) or any(fnmatchcase(name, pattern) for pattern in patterns):
            return role
    return Role.WEIGHT if size > _UNKNOWN_IS_WEIGHT_FROM else Role.CODE


def reason_to_skip(name: str) -> str:
    """Why an entry called `name` is left out of a model; empty when it is not."""
    if name.startswith("."):
        return "hidden"
    if name == "__pycache__" or name.endswith((".pyc", ".pyo")):
        return "compiled Python"
    return ""


def natural_order(path: str) -> tuple[tuple[str | int, ...], str]:
    """A sort key that puts `model-2` before `model-10`; total, so that the order is the same everywhere."""
    parts = _DIGITS.split(path)
    return tuple(int(part) if place % 2 else part for place, part in enumerate(parts)), path


def layer_order(role: Role, path: str) -> tuple[int, tuple[tuple[str | int, ...], str]]:
    """A sort key for the layers of a manifest: by class, then naturally."""
    return _ORDER[role], natural_order(path)
