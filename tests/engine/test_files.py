from __future__ import annotations

import pytest
from modelvold.engine.files import Form, Turn, form_of, is_second_copy, is_weight_map, turn_of


@pytest.mark.parametrize(
    ("turn", "names"),
    [
        (
            Turn.FIRST,
            "config.json tokenizer.json tokenizer.model tokenizer_config.json vocab.txt merges.txt chat_template.jinja TOKENIZER",
        ),
        (
            Turn.FIRST,
            "model.safetensors.index.json modules.json qwen.tiktoken params.yaml spiece.model generation_config.json",
        ),
        (Turn.BESIDE, "modeling_x.py requirements Makefile model.safetensors adapter.bin README2.d/x noext"),
        (Turn.NEVER, "README.md readme LICENSE LICENSE-LLAMA3 USE_POLICY.md .gitattributes paper.PDF a.png notes.txt"),
    ],
)
def test_when_small_files_are_read(turn: Turn, names: str) -> None:
    wrong = [name for name in names.encode().split() if turn_of(name.rpartition(b"/")[2]) is not turn]
    assert wrong == []


def test_forms_of_weights() -> None:
    names = b"a.safetensors A.SAFETENSORS m.gguf pytorch_model.bin x.pt x.pth x.ckpt m.onnx m.onnx_data safetensors x"
    forms = [form_of(name) for name in names.split()]
    s, g, a, o = Form.SAFETENSORS, Form.GGUF, Form.ARCHIVE, Form.OTHER
    assert forms == [s, s, g, a, a, a, a, o, o, s, o]


def test_weights_that_stand_elsewhere_too() -> None:
    paths = b"original/consolidated.00.pth a/original/x consolidated.safetensors a/consolidated-1.safetensors"
    assert [is_second_copy(path) for path in paths.split()] == [True] * 4
    assert not any(is_second_copy(path) for path in (b"original", b"originals/x.pth", b"model.safetensors"))


def test_weight_maps_by_name() -> None:
    assert is_weight_map(b"model.safetensors.index.json")
    assert is_weight_map(b"pytorch_model.bin.INDEX.json")
    assert not is_weight_map(b"index.json.txt")
