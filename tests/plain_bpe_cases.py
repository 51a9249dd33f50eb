"""A small vocabulary of model `gemma4`, and texts at its edges. The ids in tests/data/plain_bpe.json are
llama-tokenize's."""

from typing import Any

_CHARS = "\u2581abcdehlnorstuwxyz.,!\u00e9\u4e2d"
_MERGES = ["\u2581 t", "h e", "\u2581t he", "e r", "l l", "ll o", "h ello", "he llo", "\u2581 \u2581",
           "\u2581\u2581 \u2581\u2581", "o r", "w or", "\u2581 wor", "l d", "\u2581wor ld", "a b", "ab c",
           "x y", "xy z"]  # fmt: skip
_BREAKS = ["\n", "\n\n", "\n\n\n\n"]
_CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>", "<|turn>", "<turn|>"]
_SHOWN = ["<|channel>"]
TEXTS = (
    "hello world", " the  world", "the the", "   ", "a\nb", "a\n\nb\n\n\nc", "\n\n\n\n\n", "abc xyz!",
    "caf\u00e9 \u4e2d\u6587", "\U0001f600", "<|turn>hello<turn|>\n", "x<|channel>y", "tab\there", "the\u2581world", "",
    "ab" * 40, "hello\r\nworld",
)  # fmt: skip


def vocabulary(has_all_bytes: bool) -> list[tuple[str, Any, str]]:
    """The keys. Of merges "xy z" has no token, and neither has a character that no merge names."""
    merged = [left + right for left, right in (merge.split(" ", 1) for merge in _MERGES)]
    normal = list(dict.fromkeys([*_BREAKS, *(m for m in merged if m != "xyz"), *_CHARS]))
    bytes_ = [f"<0x{b:02X}>" for b in range(256) if has_all_bytes or b in (0x09, 0xF0, 0x9F, 0x79, 0x7A)]
    tokens = [*_CONTROL, *_SHOWN, *bytes_, *normal]
    types = [3] * 3 + [2] + [3] * 2 + [4] + [6] * len(bytes_) + [1] * len(normal)
    return [
        ("tokenizer.ggml.model", "gemma4", "str"),
        ("tokenizer.ggml.tokens", tokens, "arr:str"),
        ("tokenizer.ggml.scores", [-1000.0] * len(tokens), "arr:f32"),
        ("tokenizer.ggml.token_type", types, "arr:i32"),
        ("tokenizer.ggml.merges", _MERGES, "arr:str"),
        ("tokenizer.ggml.bos_token_id", 2, "u32"),
        ("tokenizer.ggml.eos_token_id", 1, "u32"),
        ("tokenizer.ggml.unknown_token_id", 3, "u32"),
        ("tokenizer.ggml.padding_token_id", 0, "u32"),
        ("tokenizer.ggml.add_space_prefix", False, "bool"),
        ("tokenizer.ggml.add_bos_token", True, "bool"),
    ]
