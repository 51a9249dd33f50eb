"""Arguments that keep a sequence's state in a file, and what happens to that file around a run."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

from mtpref.base.errors import MtprefError
from mtpref.files.doors import claim_output, in_place


def add_session(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("state")
    group.add_argument(
        "--prompt-cache",
        metavar="FNAME",
        help="keep the model state in a file: what it holds of the prompt is not run again (default: none)",
    )
    group.add_argument(
        "--prompt-cache-ro", action="store_true", help="use the file of --prompt-cache, but do not write it"
    )
    group.add_argument(
        "--checkpoint-every",
        type=int,
        default=0,
        metavar="N",
        help="go back to a multiple of N tokens too, where a prompt differs from what the state holds (default: 0, to "
        "the ends of prompts only)",
    )


class PromptCache:
    """The session of a run, and the file that it comes from and goes to."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.path = Path(args.prompt_cache) if args.prompt_cache else None
        self._is_read_only = bool(args.prompt_cache_ro)
        self._every = int(args.checkpoint_every)
        if self._every < 0:
            raise MtprefError(f"--checkpoint-every: {self._every} is out of range, expected 0 (never) or more")
        if self.path is None:
            if self._is_read_only:
                raise MtprefError("--prompt-cache-ro: no file is given, expected one; use --prompt-cache FNAME")
        elif not self._is_read_only:
            if not os.access(self.path.parent, os.W_OK):
                raise MtprefError(
                    f"--prompt-cache {self.path}: cannot be written, expected a writable folder; "
                    "or add --prompt-cache-ro"
                )
            claim_output(self.path)

    def open(self, model: Any, n_ctx: int, say: Any) -> Any:
        """The session that the file holds; a new one where there is no file yet, or an empty one."""
        if self.path is None or not self.path.exists() or (self.path.is_file() and self.path.stat().st_size == 0):
            if self.path is not None and self._is_read_only:
                raise MtprefError(
                    f"--prompt-cache {self.path}: is not there, expected a state file; "
                    "leave --prompt-cache-ro out to write one"
                )
            return model.new_session(n_ctx, checkpoint_every=self._every)
        with contextlib.nullcontext() if self._is_read_only else in_place():
            session = model.load_session(self.path, n_ctx, checkpoint_every=self._every)
        say.line(f"prompt cache: {len(session.ids)} tokens loaded from {self.path}")
        return session

    def close(self, session: Any, say: Any) -> None:
        """Write the file, also after an interrupted run: all that was consistent then."""
        if self.path is None or session.decoder is None:
            return
        statistics = session.decoder.statistics
        say.line(f"prompt cache: {statistics.n_reused} of {statistics.n_prompt} prompt tokens reused")
        if not self._is_read_only:
            session.save(self.path)
            say.line(f"prompt cache: {len(session.ids)} tokens saved to {self.path}")
