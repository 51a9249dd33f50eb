"""The tensors and shapes that a configuration promises: what the data sheet makes of the keys that will be written."""

from collections import ChainMap
from collections.abc import Iterable
from typing import Any

from mtpref.architectures import Block, Tensor, numbers, present_tensors
from mtpref.base.errors import MtprefError, UnsupportedError
from mtpref.heads.convert.keys import hyper_parameters
from mtpref.heads.hf import TextConfig
from mtpref.spec.config import Metadata, Values

Shapes = dict[str, tuple[tuple[int, ...] | None, bool]]


def expected_shapes(config: TextConfig, n_mtp: int, names: frozenset[str], *, has_trunk: bool) -> Shapes:
    """GGUF name -> (shape or None where nothing says it, whether a file without it is refused).

    names   what there is: of alternatives one is expected, and some layers are what their tensors make them
    Errors  MtprefError for counts that contradict each other: nothing could run the file
    """
    sheet, n_layer = config.sheet, config.n_layer
    kv: dict[str, Any] = {key: value for key, value, _ in hyper_parameters(config, n_mtp, 0)}
    meta = Metadata(kv | {"general.architecture": sheet.name}, "config.json")
    known = {} if config.vocab_size is None else {"n_vocab": config.vocab_size}
    own = sheet.values(meta)
    found: Shapes = {}

    def expect(tensors: Iterable[Tensor], values: Values, il: int | None = None) -> None:
        counts = ChainMap(known, values)  # type: ignore[arg-type]
        for tensor in tensors:
            one = tensor if il is None else tensor.at(il)
            found[one.name] = numbers(one.shape, counts), one.required

    expect(sheet.tensors, own)
    if has_trunk:
        blocks = sheet.layers.of_checkpoint(config.found, n_layer) or sheet.layers.blocks(meta, n_layer, names)
        for il, block in enumerate(blocks):
            _check_counts(block, own.at(il))
            expect(present_tensors(block.tensors, il, names), own.at(il), il)
    for il in range(n_layer, n_layer + n_mtp):
        if sheet.head is not None:
            _check_counts(sheet.head.block_at(il, names), own.at(il))
        expect(sheet.head_tensors(il, names), own.at(il), il)
    return found


def _check_counts(block: Block, values: Values) -> None:
    """What a run asks of the counts together; what is right and not supported is no fault of a checkpoint."""
    for kind in (block.mixer, block.ffn):
        try:
            kind.configure(values)
        except UnsupportedError:
            continue
        except MtprefError as error:
            text = str(error).removesuffix("; try: mtpref inspect FILE")
            raise MtprefError(f"{text}; is this the checkpoint's own config.json?") from error
