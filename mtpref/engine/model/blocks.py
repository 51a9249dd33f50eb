"""Reading blocks: the tensors of one layer as its data sheet lists them.

Owns how a sheet's tensors become a dict of weights; load.py reads the trunk with it, head.py the MTP blocks.
"""

from dataclasses import replace
from typing import Any

from mtpref.architectures import Block, Tensor, numbers, present_tensors
from mtpref.base.errors import MtprefError
from mtpref.engine.model.model import Layer
from mtpref.engine.weights import TensorFinder
from mtpref.spec import Matrix, Stack
from mtpref.spec.config import Values


def read_layer(block: Block, values: Values) -> Layer:
    """The block with its hyper-parameters. Errors: MtprefError for keys that contradict each other"""
    configure = getattr(block.residual, "configure", None)
    own = configure(values) if configure else None
    return Layer(block, block.mixer.configure(values), block.ffn.configure(values), own)


def read_block(finder: TensorFinder, block: Block, values: Values, il: int) -> dict[str, Any]:
    """The tensors of block il by their GGUF name without "blk.il."."""
    found: dict[str, Any] = {}
    for tensor in present_tensors(block.tensors, il, finder.file.tensors):
        name = tensor.at(il).name
        if tensor.required or finder.has(name):
            found |= _held(tensor, read_tensor(finder, tensor, values, name), values)
    return found


def _held(tensor: Tensor, data: Any, values: Values) -> dict[str, Any]:
    """A tensor under the name or names that it is held under: its rows, as views, each called TENSOR/NAME."""
    if not tensor.parts:
        return {tensor.name: data}
    found, first = {}, 0
    for name, dim in tensor.parts:
        last = first + (dim.value(values) or 0)
        is_product = isinstance(data, Matrix | Stack)
        found[name] = replace(data.rows(first, last), name=f"{data.name}/{name}") if is_product else data[first:last]
        first = last
    return found


def read_tensor(finder: TensorFinder, tensor: Tensor, values: Values, name: str) -> Any:
    """One tensor under the name that it has in the file: a matrix, a stack of matrices, or float32."""
    shape = numbers(tensor.shape, values)
    if shape is None:
        raise MtprefError(f"{finder.file.label}: the shape of {name} is not known")
    if tensor.below is not None:
        return finder.integers(name, shape, tensor.below.value(values) or 0)
    if not tensor.is_matrix:
        return finder.array(name, shape)
    return finder.matrix(name, (shape[0], shape[1])) if len(shape) == 2 else finder.stack(name, shape)
