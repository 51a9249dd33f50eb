"""Checks of model state: checkpoint and restore, planes, files, reuse of a prefix."""

import tempfile
from pathlib import Path

from mtpref.base.events import Token
from mtpref.engine.decode import Options
from mtpref.engine.session import Session
from mtpref.look.selftest.bench import Bench, Failed, n_different, trunk_digest


def checkpoint_and_restore(bench: Bench) -> str:
    """Back to a checkpoint and forth again; and back by planes, to each of the last tokens."""
    model, ids = bench.model, bench.prompt
    n_keep = min(4, len(ids) - 1)
    state = bench.new_state()
    model.trunk(state, ids[:-n_keep], n_logits=0)
    saved, before = state.checkpoint(), state.digest()
    first = model.trunk(state, ids[-n_keep:], n_logits=n_keep, keep=n_keep).logits
    state.restore(saved)
    if state.digest() != before:
        raise Failed("restore does not bring back the checkpoint's bits")
    digests = [before]
    for i in range(n_keep):
        logits = model.trunk(state, ids[len(ids) - n_keep + i :][:1], n_logits=1).logits
        if n_different(logits[0], first[i]):
            raise Failed(f"token {i} after the checkpoint: the logits differ from those of the first time")
        digests.append(trunk_digest(state))
    for n_drop in range(1, n_keep):
        state.restore(saved)
        model.trunk(state, ids[-n_keep:], n_logits=0, keep=n_keep)
        state.choose_plane(n_drop)
        if trunk_digest(state) != digests[n_keep - n_drop]:
            raise Failed(f"a roll back of {n_drop} of {n_keep} tokens by planes leaves another state")
    return f"restored, run again, rolled back by 1 to {n_keep - 1} of {n_keep} tokens: equal bits"


def session_files(bench: Bench) -> str:
    """A sequence saved to a file, loaded, and gone on with, beside one that was never saved."""
    model, n = bench.model, max(4, bench.size.n_predict // 4)
    options = Options(n_predict=n, spec_type="draft-mtp" if model.has_mtp else "none")
    n_ctx = min(1024, model.config.n_ctx_train)
    session = Session(model, n_ctx, poison=True)
    begun = _ids(session, bench.prompt, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.gguf"
        session.save(path)
        n_bytes = path.stat().st_size
        loaded = Session.load(model, path, n_ctx, poison=True)
    if loaded.state.digest() != session.state.digest() or loaded.ids != session.ids:
        raise Failed("the state read from a file differs from the one written to it")
    longer = [*bench.prompt, *begun]
    going_on, again = _ids(session, longer, options), _ids(loaded, longer, options)
    fresh = Session(model, n_ctx, poison=True)
    expected = _ids(fresh, longer, options)
    if not going_on == again == expected:
        raise Failed("text after a saved, a kept and a fresh state differs")
    if not session.state.digest() == loaded.state.digest() == fresh.state.digest():
        raise Failed("the same text, but the states after a saved, a kept and a fresh one differ")
    return f"{n_bytes / 1e6:.1f} MB saved and loaded; a longer prompt on top gives the bits of a fresh run"


def _ids(session: Session, prompt: list[int], options: Options) -> list[int]:
    return [event.id for event in session.run(prompt, options) if isinstance(event, Token)]
