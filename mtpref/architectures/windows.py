"""What data sheets of attention with windows share: counts that may differ from block to block, and nextn.*."""

from dataclasses import replace

from mtpref.architectures.common import OUTPUT, base_hypers, eh_proj_tensors, root_tensors
from mtpref.architectures.sheet import Hyper, Tensor
from mtpref.architectures.transforms import Change

n_window = Hyper("n_window", "attention.sliding_window", hf="sliding_window")
is_windowed = Hyper("is_windowed", "attention.sliding_window_pattern", "i32/layer", low=0, high=1)
# llama.cpp's default, whatever the other base is.
freq_base_windowed = Hyper("freq_base_windowed", "rope.freq_base_swa", "f32", default=10000.0, low=1.0, high=1e12)
_PER_BLOCK = ("attention.head_count", "attention.head_count_kv")


def windowed_base_hypers() -> tuple[Hyper, ...]:
    """The hyper-parameters that every architecture has: heads counted for each block, widths of heads required."""
    widths = ("attention.key_length", "attention.value_length")
    return tuple(
        replace(h, type="u32/layer", default=None)
        if h.key in _PER_BLOCK
        else replace(h, default=None)
        if h.key in widths
        else h
        for h in base_hypers
    )


def untied_root_tensors(norm: Change) -> tuple[Tensor, ...]:
    """The tensors outside of blocks where a file must have an output of its own. norm: of the final norm"""
    return tuple(replace(t, fallback=()) for t in root_tensors(norm))


def chained_head_tensors(norm: Change, names: dict[str, str]) -> tuple[Tensor, ...]:
    """nextn.* of each head of a chain. names: those in a checkpoint, by what stands after nextn."""
    own = {t.name.split(".")[1]: t for t in eh_proj_tensors(norm)}
    own["shared_head_head"] = replace(own["shared_head_head"], fallback=(OUTPUT,))
    return tuple(replace(t, hf=names[part]) for part, t in own.items())
