"""`graft`: a trunk with a head of another file. The trunk's tensors are copied as they are."""

from dataclasses import dataclass, replace

from mtpref.architectures import ARCHITECTURES, D2T
from mtpref.base.errors import MtprefError
from mtpref.files.gguf import GgufFile
from mtpref.files.identify import has_trunk
from mtpref.heads.contents import Contents, Item, Source, items_of, source_of
from mtpref.heads.layout import BLOCK_COUNT, NEXTN, HeadLayout, layout_by, layout_of
from mtpref.heads.match import check_match, doubts
from mtpref.heads.pairs import pairs_of, relabelled, with_head


@dataclass(frozen=True)
class Graft:
    """arch: the architecture; contents: the file to be written

    notes: what a user should know; doubts: why the head may be another trunk's
    """

    arch: str
    contents: Contents
    notes: list[str]
    doubts: list[str]


def graft(trunk: GgufFile, source: GgufFile | Source) -> Graft:
    """The trunk of one file with the head of another.

    trunk    a model; a head of its own (or keys that declare one that is not there) is replaced
    source   mtp-*.gguf, a whole model whose head is taken, or a checkpoint (`checkpoint_source`)
    Order    the trunk's tensors in their order, the head's where its file has them among those that both files hold,
             as late as that allows: for files in llama.cpp's own order the file that the converter makes of both
    Errors   MtprefError for a head that cannot serve this trunk (`match.check_match`), or a file that holds no trunk
    """
    if not has_trunk(trunk.tensors):
        raise MtprefError(
            f"{trunk.label}: holds no trunk (blk.0), expected a model to put the head into; "
            "the order is: mtpref graft TRUNK HEAD -o OUT"
        )
    own = layout_of(trunk)
    if ARCHITECTURES[own.arch].head is None:
        raise MtprefError(
            f"{trunk.label}: models of {own.arch} have no place for an MTP head; their assistant stays a file of its "
            "own, `model_draft` of a run"
        )
    if isinstance(source, GgufFile):
        theirs, head = layout_of(source), source_of(source)
    else:
        theirs, head = layout_of_source(source), source
    check_match(source_of(trunk), own, head, theirs)
    items = _joined(items_of(trunk, set(trunk.tensors) - set(own.names)), _head_items(head, theirs), head.order)
    pairs = with_head(pairs_of(trunk), head.pairs, own.arch, own.n_trunk, theirs.n_nextn)
    before = [(info.name, info.shape) for info in trunk.tensors.values()]
    contents = Contents(pairs, items)
    contents = replace(contents, pairs=relabelled(pairs, before, contents.shapes))
    return Graft(own.arch, contents, _notes(own, head, theirs), doubts(source_of(trunk), head))


def layout_of_source(source: Source) -> HeadLayout:
    """The head of a checkpoint as it would be converted."""
    arch = str(source.get("general.architecture"))
    n_nextn = int(source.get(f"{arch}.{NEXTN}") or 0)
    return layout_by(arch, int(source.get(f"{arch}.{BLOCK_COUNT}")), n_nextn, source.items)


def _head_items(source: Source, layout: HeadLayout) -> list[Item]:
    items = [source.items[name] for name in layout.names]
    own_head = f"blk.{layout.n_trunk}.nextn.shared_head_head.weight"
    if D2T.name in source.items and own_head not in source.items:
        if "output.weight" not in source.items:
            raise MtprefError(
                f"{source.label}: {D2T.name} is there and neither {own_head} nor output.weight, expected "
                "the rows that it names"
            )
        # A trimmed stand-alone head keeps its rows in output.weight, which in a whole model is the trunk's.
        items.append(replace(source.items["output.weight"], name=own_head))
    return items


def _joined(trunk: list[Item], head: list[Item], order: list[str]) -> list[Item]:
    """The head's tensors among the trunk's, each before the first that follows it in its own file."""
    places = {item.name: i for i, item in enumerate(trunk)}
    numbers = {name: i for i, name in enumerate(order)}
    at: dict[int, list[Item]] = {}
    for item in head:
        i = numbers.get(item.name, len(order))
        preceding = max((places[name] for name in order[:i] if name in places), default=-1)
        following = min((places[name] for name in order[i:] if name in places), default=len(trunk))
        at.setdefault(following if following > preceding else len(trunk), []).append(item)
    out: list[Item] = []
    for i in range(len(trunk) + 1):
        out += at.get(i, [])
        out += trunk[i : i + 1]
    return out


def _notes(own: HeadLayout, source: Source, theirs: HeadLayout) -> list[str]:
    notes = []
    if not theirs.is_declared:
        notes.append("no key of the head's file declares its head; in the new file one does")
    if own.names:
        notes.append(f"the trunk's own head of {len(own.names)} tensors is replaced")
    elif own.n_nextn:
        notes.append("the trunk's keys declared a head that was not there; now it is")
    left = _left_out(source, theirs)
    if left:
        verb = "are" if len(left) > 1 else "is"
        notes.append(
            f"{', '.join(left)} of the head's file {verb} left out: alone the head reads its own, in one file "
            "the trunk's"
        )
    return notes


def _left_out(source: Source, theirs: HeadLayout) -> list[str]:
    """What a stand-alone head's file has for the head under the trunk's names."""
    if has_trunk(source.items):
        return []
    prefix = f"blk.{theirs.n_trunk}.nextn."
    own = {
        "token_embd.weight": "embed_tokens",
        "output_norm.weight": "shared_head_norm",
        "output.weight": "shared_head_head",
    }
    return [
        name
        for name, part in own.items()
        if name in source.items
        and f"{prefix}{part}.weight" not in source.items
        and not (name == "output.weight" and D2T.name in source.items)
    ]
