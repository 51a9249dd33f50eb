"""The library's front door: `mtpref.load(path)` and what it returns.

Owns the convenience around model, state and loop. Everything it does can be done with the parts it is made of.
"""

import codecs
import html
from collections.abc import Iterator, Sequence
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from mtpref.base.events import Event, RunEnded, Token
from mtpref.base.settings import SettingError, check_arguments, check_path, checked, named
from mtpref.engine import model as model_room
from mtpref.engine.decode import Decoder, Drafter, Options, Statistics
from mtpref.engine.model import Model
from mtpref.engine.recipe import make_recipe
from mtpref.engine.session import Session
from mtpref.files import chat
from mtpref.spec.contract import MtpContract, parse_contract
from mtpref.spec.rope_scaling import RopeOverrides
from mtpref.spec.state import KvType, ModelState, Positions

DRAFTER = ("draft", "saw", "reads_head")  # what a drafter must have


def tiny_path() -> Path:
    """The embedded tiny model's file."""
    return Path(str(files("mtpref") / "data" / "tiny.gguf"))


class Run:
    """One generation: iterate for events, or `stream()` for text; read `statistics` and `text` at any time."""

    def __init__(self, decoder: Decoder, prompt_ids: Sequence[int], events: Iterator[Event] | None = None) -> None:
        self.prompt_ids = list(prompt_ids)
        self.ids: list[int] = []
        self.texts: list[bytes] = []
        self._decoder = decoder
        self._reason = ""
        self._events = decoder.run(prompt_ids) if events is None else events

    def __iter__(self) -> Iterator[Event]:
        for event in self._events:
            if isinstance(event, Token):
                self.ids.append(event.id)
                self.texts.append(event.text)
            elif isinstance(event, RunEnded):
                self.texts.append(event.text)
                self._reason = event.reason
            yield event

    def stream(self) -> Iterator[str]:
        """The text in pieces, as soon as each is known: joined, they are `text` at the end of the run.

        Rule  a character of several tokens comes whole, and what may begin a stop string is held back; bytes that are
              not UTF-8 become U+FFFD
        """
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        for event in self:
            if isinstance(event, Token | RunEnded):
                text = decoder.decode(event.text, final=isinstance(event, RunEnded))
                if text:
                    yield text

    def __repr__(self) -> str:
        text = self.text
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        return f"<mtpref.Run: {self._told()}, text {shown!r}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: how far the run is, and its text."""
        return f"<p>{html.escape(self._told())}</p><pre>{html.escape(self.text)}</pre>"

    def _told(self) -> str:
        counts = self.statistics
        state = f"ended ({self._reason})" if self._reason else "under way" if counts.n_prompt else "not begun"
        rate = counts.acceptance
        drafts = "" if rate is None else f", {counts.n_accepted} of {counts.n_drafted} drafted tokens accepted"
        return f"{state}, {len(self.prompt_ids)} + {len(self.ids)} tokens{drafts}"

    @property
    def statistics(self) -> Statistics:
        return self._decoder.statistics

    @property
    def state(self) -> ModelState:
        """The model state that the run works on."""
        return self._decoder.state

    @property
    def text(self) -> str:
        """The text generated so far, without its stop string; bytes that are not UTF-8 show as U+FFFD."""
        return b"".join([*self.texts, self.held]).decode("utf-8", "replace")

    @property
    def held(self) -> bytes:
        """The end of the text so far, as long as it may be the beginning of a stop string."""
        return self._decoder.stop_strings.held

    def finish(self) -> "Run":
        """Run to the end, without looking at events."""
        for _ in self:
            pass
        return self


class LanguageModel:
    """A loaded model. `core` is the model itself, for tensors and states."""

    def __init__(self, core: Model) -> None:
        self.core = core

    @property
    def has_mtp(self) -> bool:
        return self.core.has_mtp

    def __repr__(self) -> str:
        core = self.core
        layers, head = f"{core.config.n_layer} layers", "an MTP head" if core.has_mtp else "no MTP head"
        about = f"{layers}, {core.n_vocab} tokens, {head}, {core.recipe.numerics} numerics"
        return f"<mtpref.LanguageModel {core.config.name!r}: {about}>"

    def _token_ids(self, prompt: Any) -> list[int]:
        if isinstance(prompt, bytes) or not (isinstance(prompt, Sequence) or hasattr(prompt, "tolist")):
            raise SettingError("prompt", f"{named(prompt)} is out of place, expected a text, token ids or a ChatPrompt")
        ids: list[int] = list(checked(tuple[int, ...], prompt, "prompt"))
        wrong = next((i for i in ids if not 0 <= i < self.core.n_vocab), None)
        if wrong is not None:
            expected = f"expected 0 .. {self.core.n_vocab - 1}"
            raise SettingError("prompt", f"token id {named(wrong)} is not in the vocabulary, {expected}")
        return ids

    def encode(self, text: str, *, limit: int = 0) -> list[int]:
        """Token ids of a text; one that has far more than `limit` is refused early (`Vocab.encode`)."""
        checked(str, text, "text")
        checked(Positions, limit, "limit")
        return self.core.vocab.encode(text, limit=limit)

    def chat_template(self, wanted: str | None = None) -> chat.ChatTemplate:
        """The file's own chat template (None), or a variant, a built-in one, a file, or a template's text.

        Errors  MtprefError where there is none of that name; it lists what there is
        """
        return chat.find_template(self.core.kv, checked(str | None, wanted, "template"))

    def chat_prompt(
        self,
        messages: Sequence[chat.Message],
        *,
        template: str | chat.ChatTemplate | None = None,
        now: datetime | None = None,
        **template_args: Any,
    ) -> chat.ChatPrompt:
        """A conversation as a prompt (`text`, `ids`), for `generate`.

        messages       [{"role": "user", "content": "..."}, ...]
        template       as for `chat_template`
        now            what a template that asks for the date is told (default: the time of the call)
        template_args  e.g. enable_thinking=False
        Errors         MtprefError, one line, where the template refuses the messages or is itself refused
        """
        if isinstance(messages, str) or not isinstance(messages, Sequence):
            raise SettingError("messages", f"{named(messages)} is out of place, expected a list of objects with a role")
        checked(datetime | None, now, "now")
        if not isinstance(template, chat.ChatTemplate):
            template = self.chat_template(template)
        limit = self.core.config.n_ctx_train
        return chat.chat_prompt(template, self.core.vocab, messages, template_args, now, limit)

    def new_session(self, n_ctx: int = 0, *, checkpoint_every: int = 0) -> Session:
        """An empty sequence for `generate(..., session=...)`: later prompts reuse what it holds (docs/sessions.md)."""
        return Session(self.core, n_ctx, checkpoint_every=checkpoint_every)

    def load_session(self, path: str | Path, n_ctx: int = 0, *, checkpoint_every: int = 0) -> Session:
        """The sequence that `Session.save` wrote to a file."""
        return Session.load(self.core, path, n_ctx, checkpoint_every=checkpoint_every)

    def generate(
        self,
        prompt: str | Sequence[int] | chat.ChatPrompt,
        options: Options | None = None,
        *,
        n_ctx: Positions = 0,
        state: ModelState | None = None,
        session: Session | None = None,
        drafter: Drafter | None = None,
    ) -> Run:
        """Start a generation; nothing runs until the result is iterated.

        prompt   a text, token ids, or a conversation from `chat_prompt`
        options  default: 128 tokens, drafting with the MTP head where the file has one
        n_ctx    positions at most (0: the model's context length); state: reuse this one instead (it is cleared)
        session  continue this sequence: what it holds of the prompt is not run again; it has its own state and n_ctx
        drafter  propose drafts with this object instead of the MTP head
        Errors   SettingError for an argument of another type; MtprefError for an empty prompt, or one that does not
                 fit the context, when iteration starts
        """
        check_arguments(self.__class__.generate, {k: v for k, v in locals().items() if k not in ("prompt", "drafter")})
        if options is None:
            options = Options(spec_type="draft-mtp" if self.has_mtp else "none")
        if drafter is not None and (isinstance(drafter, type) or not all(hasattr(drafter, part) for part in DRAFTER)):
            raise SettingError("drafter", f"{named(drafter)} is out of place, expected an object derived from Drafter")
        if session is not None and state is not None:
            raise SettingError("state", "it is given beside a session, which has its own; leave one of them out")
        if session is not None and n_ctx not in (0, session.state.n_ctx):
            raise SettingError("n_ctx", f"{named(n_ctx)}, expected that of the session, {session.state.n_ctx}")
        used = session.state if session is not None else state
        if isinstance(prompt, chat.ChatPrompt):
            ids = list(prompt.ids)
        else:
            limit = (n_ctx if used is None else used.n_ctx) or self.core.config.n_ctx_train
            ids = self.encode(prompt, limit=limit) if isinstance(prompt, str) else self._token_ids(prompt)
        if session is not None:
            stops = (prompt.n_before_answer,) if isinstance(prompt, chat.ChatPrompt) else ()
            decoder, events = session.start(ids, options, drafter, checkpoint_at=stops)
        else:
            decoder = Decoder(self.core, used or self.core.new_state(n_ctx), options, drafter)
            events = decoder.run(ids)
        if isinstance(prompt, chat.ChatPrompt):
            decoder.statistics.chat = prompt.to_json()
        return Run(decoder, ids, events)


def load(
    path: str | Path | None = None,
    *,
    numerics: str = "ggml",
    contract: str | MtpContract = "llama.cpp",
    kv_type: KvType | None = None,
    kv_type_draft: KvType | None = None,
    use_kernels: bool | None = None,
    repack: bool = True,
    rope: RopeOverrides | None = None,
    model_draft: str | Path | None = None,
    mtp: bool = True,
    check_tensors: bool = False,
) -> LanguageModel:
    """Open a GGUF file, or the first of a split model (None: the embedded tiny model).

    numerics       ggml (what llama.cpp's CPU backend computes) or exact (float32 with float64 sums)
    contract       an MtpContract, or its textual form: llama.cpp, training, "training,hidden=pre", ...
    kv_type        F32, F16 or BF16 for the trunk's KV (default: F16 in ggml, F32 in exact numerics)
    kv_type_draft  the same for the MTP block's KV
    use_kernels    False: the readable spec instead of the Numba kernels (same bits, slow)
    repack         False: the kernels read weights as they lie in the file (same bits, slower, no copy in memory)
    rope           RoPE keys to set in place of the file's: RopeOverrides(scaling_type="yarn", freq_scale=0.25)
    model_draft    a stand-alone MTP head (mtp-*.gguf) for a model without one, or in place of its own
    mtp            False: the head is not loaded and takes no memory (for plain decoding)
    check_tensors  look for NaN and infinity in all weights first
    Errors         MtprefError, one line
    """
    check_arguments(load, locals())
    for name, file in (("path", path), ("model_draft", model_draft)):
        if file is not None:
            check_path(file, name)
    parsed = parse_contract(contract) if isinstance(contract, str) else contract
    recipe = make_recipe(numerics, parsed, use_kernels=use_kernels, repack=repack)
    core = model_room.load(
        tiny_path() if path is None else path,
        recipe,
        kv_type=kv_type,
        kv_type_draft=kv_type_draft,
        rope=rope,
        model_draft=model_draft,
        mtp=mtp,
        check_tensors=check_tensors,
    )
    return LanguageModel(core)
