"""`extract` and `strip`: the two files that llama.cpp's converter makes of a checkpoint with --mtp and --no-mtp.

Source: llama.cpp conversion/qwen.py, filter_tensors and set_gguf_parameters.
"""

from mtpref.architectures import ARCHITECTURES, D2T, SHARED, assistant_of
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile, listed
from mtpref.files.identify import has_trunk
from mtpref.heads.contents import Contents, items_of
from mtpref.heads.layout import NEXTN, HeadLayout, layout_of
from mtpref.heads.pairs import pairs_of, relabelled, with_head, without_head


def extract(file: GgufFile) -> Contents:
    """The head alone: its blocks, and token_embd, output_norm, output and what else stands outside of blocks, which it
    shares with the trunk.

    All keys stay as they are, block_count too: the head's block keeps its number. A head that no key declared gets one.
    Errors   MtprefError without a head, with one that is incomplete, or for a file that holds no trunk
    """
    layout = _with_head(file)
    if layout.missing:
        raise MtprefError(
            f"{file.label}: the MTP head is incomplete, {len(layout.missing)} tensors are missing "
            f"({listed(layout.missing)}); take it from another file"
        )
    if not has_trunk(file.tensors):
        raise MtprefError(f"{file.label}: holds no trunk (blk.0), so it is an MTP head already; expected a whole model")
    shared = {*SHARED, *(tensor.name for tensor in ARCHITECTURES[layout.arch].tensors)}
    if D2T.name in file.tensors and any(name.endswith(".shared_head_head.weight") for name in layout.names):
        shared.discard("output.weight")  # the trimmed head has its own; beside d2t, an output would be read as trimmed
    pairs = pairs_of(file)
    if not layout.is_declared:
        pairs = with_head(pairs, pairs, layout.arch, layout.n_trunk, layout.n_nextn)
    return _part(file, {*layout.names, *shared}, pairs)


def strip(file: GgufFile) -> Contents:
    """The trunk alone: block_count counts its blocks, and nothing speaks of a head.

    Errors   MtprefError where neither keys nor tensors speak of a head, or for a file that holds no trunk
    """
    layout = _with_head(file)
    if not has_trunk(file.tensors):
        raise MtprefError(f"{file.label}: holds an MTP head and no trunk (blk.0), expected a whole model")
    names = set(file.tensors) - set(layout.names)
    return _part(file, names, without_head(pairs_of(file), layout.arch, layout.n_trunk))


def _with_head(file: GgufFile) -> HeadLayout:
    layout = layout_of(file)
    if not layout.n_nextn and assistant_of(layout.arch) is not None:
        raise MtprefError(
            f"{file.label}: no MTP head: an assistant drafts for models of {layout.arch}, in a file of its own; "
            "there is nothing to extract or to strip"
        )
    if not layout.n_nextn:
        raise MtprefError(
            f"{file.label}: no MTP head (key {layout.arch}.{NEXTN} is absent or 0), expected one; "
            "was it dropped by the conversion? put one in with mtpref graft"
        )
    return layout


def _part(file: GgufFile, names: set[str], pairs: list) -> Contents:
    contents = Contents(pairs, items_of(file, names))
    before = [(info.name, info.shape) for info in file.tensors.values()]
    return Contents(relabelled(pairs, before, contents.shapes), contents.items)
