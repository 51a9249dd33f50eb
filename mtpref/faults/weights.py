"""Family W: weights and conversion."""

from dataclasses import replace

from mtpref.errors import MtprefError
from mtpref.faults.fault import Fault
from mtpref.weights import Weights


def _without_shift(weights: Weights) -> Weights:
    """The norms of the head as they stand in the original checkpoint: zero-centred. Shared norms are the trunk's."""
    mtp = weights.mtp
    if mtp is None:
        raise MtprefError("fault: the model has no MTP head whose norms could be wrong; use a file with a head")
    block = {name: w - 1 if name.endswith("norm.weight") else w for name, w in mtp.block.items()}
    is_own = mtp.origin["shared_head_norm"].endswith(".nextn.shared_head_norm.weight")
    head_norm = mtp.shared_head_norm - 1 if is_own else mtp.shared_head_norm
    return replace(
        weights,
        mtp=replace(mtp, enorm=mtp.enorm - 1, hnorm=mtp.hnorm - 1, block=block, shared_head_norm=head_norm),
    )


NORM_SHIFT_MISSING = Fault(
    id="W1-norm-shift-missing",
    family="W",
    title="The head's norms lack the +1",
    mechanism="The checkpoint stores norm weights around 0. The converter adds 1 to the trunk's, but the head's "
    "tensors bypass that step.",
    links=("https://github.com/waybarrios/vllm-mlx/pull/400", "https://github.com/youssofal/MTPLX/pull/511"),
    apply_weights=_without_shift,
)
