"""What a call of an experts' network is given, in records, and where kernels find them: in memory, by address.

Owns the records of moe.py and expert_parts.py. A phase of the work reads those that it needs.
"""

# mypy: disable-error-code="no-untyped-def,no-untyped-call"

from typing import NamedTuple

import numpy as np
from numba.core import types
from numpy.typing import NDArray

from mtpref.kernels.compiling.calls import in_memory
from mtpref.kernels.compiling.compile import F64, FLAG, INT, source, target
from mtpref.kernels.compiling.records import record
from mtpref.kernels.fused.nets import NET
from mtpref.kernels.products.product import OUT, X

F32 = NDArray[np.float32]

_IDS, _IDS2 = target(types.int64, 1), target(types.int64, 2)
_MADE = target(types.int32, 2)


class Router(NamedTuple):
    """S41 to S45 of a model, unless the choice is given. bias: (n_expert,) or empty."""

    is_given: bool
    is_sigmoid: bool
    normalise: bool
    scale: float
    n_group: int
    n_group_used: int
    has_bias: bool
    bias: F32


class Chosen(NamedTuple):
    """ids and weights (T, n_used), gap (T,)."""

    ids: NDArray[np.int64]
    weights: F32
    gap: F32


class Order(NamedTuple):
    """Pairs sorted by expert. tokens: of each pair; place: (T, n_used), where a pair went; runs: (n, 3), of each expert
    that was chosen its id, its first pair and their number; n_runs: (1,)"""

    tokens: NDArray[np.int64]
    place: NDArray[np.int64]
    runs: NDArray[np.int64]
    n_runs: NDArray[np.int64]


class Made(NamedTuple):
    """Words, scales and sums of activations (product.py)."""

    words: NDArray[np.int32]
    scales: F32
    sums: NDArray[np.int32]


class Between(NamedTuple):
    """Activations for gate and up, the results of both, and what goes into down."""

    gate_in: Made
    up_in: Made
    gated: F32
    upped: F32
    down_in: Made


class Job(NamedTuple):
    """All of a call but the weights. x: (T, n_embd); logits: (T, n_expert), anything where the choice is given;
    shared_logit: (T, 1), anything without a gate; y: (T, n_embd); n_ff_shared: 0 without a shared expert; limit,
    limit_shared: of SwiGLU, infinity for none; scratch: SCRATCH"""

    swiglu: int
    x: F32
    logits: F32
    shared_logit: F32
    y: F32
    n_ff: int
    n_ff_shared: int
    has_shared: bool
    has_gate: bool
    n_expert: int
    limit: np.float32
    limit_shared: np.float32
    scratch: int


ROUTER = record(
    Router,
    is_given=FLAG,
    is_sigmoid=FLAG,
    normalise=FLAG,
    scale=F64,
    n_group=INT,
    n_group_used=INT,
    has_bias=FLAG,
    bias=source(types.float32, 1),
)
CHOSEN = record(Chosen, ids=_IDS2, weights=OUT, gap=target(types.float32, 1))
ORDER = record(Order, tokens=_IDS, place=_IDS2, runs=_IDS2, n_runs=_IDS)
_SET = record(Made, words=_MADE, scales=OUT, sums=_MADE)
BETWEEN = record(Between, gate_in=_SET, up_in=_SET, gated=OUT, upped=OUT, down_in=_SET)
JOB = record(
    Job,
    swiglu=INT,
    x=X,
    logits=X,
    shared_logit=X,
    y=OUT,
    n_ff=INT,
    n_ff_shared=INT,
    has_shared=FLAG,
    has_gate=FLAG,
    n_expert=INT,
    limit=types.float32,
    limit_shared=types.float32,
    scratch=INT,
)


class Where(NamedTuple):
    """Addresses of the records of a call: a kernel reads those that it needs. Of a shared expert that is not there they
    are those of the experts. up_alike: whether what is prepared for gate serves up"""

    gate: int
    up: int
    down: int
    shared_gate: int
    shared_up: int
    shared_down: int
    router: int
    job: int
    chosen: int
    order: int
    between: int
    shared: int
    up_alike: bool
    shared_up_alike: bool


WHERE = record(
    Where,
    gate=INT,
    up=INT,
    down=INT,
    shared_gate=INT,
    shared_up=INT,
    shared_down=INT,
    router=INT,
    job=INT,
    chosen=INT,
    order=INT,
    between=INT,
    shared=INT,
    up_alike=FLAG,
    shared_up_alike=FLAG,
)
put_net, net_at = in_memory(NET)
put_router, router_at = in_memory(ROUTER)
put_job, job_at = in_memory(JOB)
put_chosen, chosen_at = in_memory(CHOSEN)
put_order, order_at = in_memory(ORDER)
put_between, between_at = in_memory(BETWEEN)
# Part p of n_parts of a phase.
PHASE = WHERE, INT, INT
