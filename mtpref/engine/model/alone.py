"""A stand-alone head as a Model whose trunk has no layers: `mtp` runs it on hidden rows that come from elsewhere."""

from pathlib import Path

from mtpref.architectures import OUTPUT, OUTPUT_NORM, TOKEN_EMBD, find_architecture
from mtpref.base.errors import MtprefError
from mtpref.engine.model.blocks import read_tensor
from mtpref.engine.model.head import Trunk, load_head
from mtpref.engine.model.load import default_kv_type
from mtpref.engine.model.model import Model
from mtpref.engine.recipe import Recipe, make_recipe
from mtpref.engine.weights import TensorFinder, Weights
from mtpref.files.gguf import open_gguf
from mtpref.files.identify import check_counts
from mtpref.files.vocab import load_vocab
from mtpref.spec.config import Metadata, read_model_config


def load_alone(path: str | Path, recipe: Recipe | None = None) -> Model:
    """The head of an mtp-*.gguf, or of a model, without its trunk.

    What it shares with a trunk (embeddings, output, its norm) is read of the file. `trunk` of such a model gives
    embeddings, which are no hidden rows.
    Errors   MtprefError as `load`; for a file without a head
    """
    file = open_gguf(path)
    meta = Metadata(file.kv, file.label)
    arch = find_architecture(meta)
    check_counts(file, arch.name)
    values = arch.values(meta)
    config = read_model_config(values)
    recipe = (recipe or make_recipe()).normed_as(config)
    finder = TensorFinder(file)
    info = file.tensors.get(TOKEN_EMBD)
    if info is None or len(info.shape) != 2:
        raise MtprefError(f"{file.label}: tensor {TOKEN_EMBD} is missing or not a matrix, expected the embeddings")
    shape = (info.shape[0], config.n_embd)
    token_embd = finder.matrix(TOKEN_EMBD, shape)
    output = finder.matrix(OUTPUT, shape) if finder.has(OUTPUT) else token_embd
    own = arch.streams.tensors if arch.streams else ()
    roots = {t.name: read_tensor(finder, t, values, t.name) for t in arch.tensors if t.name in own}
    weights = Weights(token_embd, finder.array(OUTPUT_NORM, (config.n_embd,)), output, (), roots)
    head = load_head(Trunk(file, values, arch, config, finder, weights), None, is_on=True)
    if not head.heads:
        raise MtprefError(f"{file.label}: no MTP head, expected one; try: mtpref check")
    return Model(
        config=config, arch=arch, layers=(), heads=head.heads, weights=weights, recipe=recipe,
        vocab=load_vocab(file.kv), kv_type=default_kv_type(recipe.numerics),
        kv_type_draft=default_kv_type(recipe.numerics), notes=head.notes, kv=file.kv, mtp_status=head.status,
    )  # fmt: skip
