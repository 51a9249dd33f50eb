"""What the answers of golden cases are given: a case's tensors as arrays, matrices and weights.

Owns the types of an answer and the reading of its inputs. It must not know any operation.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtpref import spec
from mtpref.engine.recipe import Recipe
from mtpref.golden.format import Tensor, param_float
from mtpref.spec import Matrix, Stack

Inputs = Mapping[str, Tensor]
Outputs = dict[str, Any]  # arrays, or JSON values
Answer = Callable[[Recipe, Mapping[str, Any], Inputs], Outputs]


def f32(tensor: Tensor) -> NDArray[np.float32]:
    return np.asarray(tensor.values(), np.float32)


def matrix(name: str, tensor: Tensor) -> Matrix:
    n_out, n_in = tensor.shape
    return Matrix(name, tensor.type_name, n_out, n_in, tensor.raw)


def stack(name: str, tensor: Tensor) -> Stack:
    """The matrices of a tensor of three dimensions."""
    n, n_out, n_in = tensor.shape
    return Stack(name, tensor.type_name, n_out, n_in, tensor.raw.reshape(n, -1))


def weights_of(x: Inputs) -> dict[str, Any]:
    """Inputs under their GGUF names: matrices and stacks as they are stored, ids as int32, the rest as float32."""
    weights: dict[str, Any] = {}
    for name, tensor in x.items():
        is_matrix = len(tensor.shape) == 2 and name.endswith(".weight") and "conv1d" not in name
        if tensor.type_name == "I32":
            weights[name] = tensor.values()
        elif len(tensor.shape) == 3:
            weights |= _experts(name, stack(name, tensor))
        elif name == "ffn_gate_inp_shexp.weight":
            weights[name] = Matrix(name, tensor.type_name, 1, tensor.shape[-1], tensor.raw)
        else:
            weights[name] = matrix(name, tensor) if is_matrix else f32(tensor)
    return weights


def _experts(name: str, found: Stack) -> dict[str, Stack]:
    """A stack of experts; one that holds gate and up as both of them."""
    if name != "ffn_gate_up_exps.weight":
        return {name: found}
    n_ff = found.n_out // 2
    return {"ffn_gate_exps.weight": found.rows(0, n_ff), "ffn_up_exps.weight": found.rows(n_ff, 2 * n_ff)}


def rope_table_of(recipe: Recipe, params: Mapping[str, Any], pos: NDArray) -> Any:
    """Cosine and sine of these positions, by the case's n_rot, freq_base and sections; without these all pairs turn."""
    n_rot = int(params["n_rot"])
    turning = np.ones(n_rot // 2, np.bool_)
    if "sections" in params:
        turning = spec.imrope_has_position(n_rot, tuple(params["sections"]))
    frequencies = spec.rope_frequencies(n_rot, param_float(params, "freq_base"))
    return recipe.ops.rope_table(pos, frequencies, turning)
