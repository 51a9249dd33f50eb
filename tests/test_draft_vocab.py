"""Draft vocabularies: the three forms of an id list, heads that a file has trimmed itself, and what is refused."""

import json

import numpy as np
import pytest

from mtpref.base.errors import MtprefError
from mtpref.base.events import Drafted, Verified
from mtpref.engine.decode import DraftLength, MtpDrafter, Statistics
from mtpref.engine.decode.drafters import Draft, HeadRun, read_head
from mtpref.engine.decode.sampling import SamplingConfig
from mtpref.engine.model import load
from mtpref.engine.recipe import make_recipe
from mtpref.engine.weights import take_rows
from mtpref.files.draft_vocab import MAX_BYTES, check_draft_ids, read_draft_ids
from mtpref.files.gguf import write_gguf
from mtpref.front.cli import main
from mtpref.spec import Matrix, mul_mat_exact, mul_mat_ggml, quants
from tests.gguf_copy import copy_of
from tests.head_files import SHARED, head_of, n_trunk_layers, trunk_of
from tests.models import MICRO, micro, prompt_of, run_decoder

IDS = (3, 5, 17, 18, 40, 77, 100, 101, 128, 160, 200, 201, 202, 233, 250, 255)
EVERY_THIRD = tuple(range(0, 256, 3))
PROMPT = prompt_of(9, seed=4)


def decisions(run):
    return [event for event in run.events if isinstance(event, Drafted | Verified)]


def d2t_tensor(ids, type_name="I64"):
    values = np.asarray(ids, "<i8" if type_name == "I64" else "<i4")
    return "d2t", type_name, values.shape, values.view(np.uint8)


def write_d2t(path, ids, type_name="I64"):
    write_gguf(path, [("general.architecture", "eagle3", "str")], [d2t_tensor(ids, type_name)])
    return path


# ---------------------------------------------------------------------------------------- id lists


@pytest.mark.parametrize(
    "text",
    ["7\n3\n250\n", "3\r\n7\r\n250", "\n  3 \n\n250\n7", "[250, 3, 7]", " [3,\n7,250]\n"],
    ids=["lines", "crlf", "blank-lines", "json", "json-spaced"],
)
def test_lines_and_json_give_the_ids_in_ascending_order(tmp_path, text):
    path = tmp_path / "ids"
    path.write_bytes(text.encode())
    assert read_draft_ids(path, 256) == (3, 7, 250)


@pytest.mark.parametrize("type_name", ["I64", "I32"])
def test_the_tensor_d2t_of_a_gguf_gives_its_ids(tmp_path, type_name):
    assert read_draft_ids(write_d2t(tmp_path / "draft.gguf", [9, 2, 255], type_name), 256) == (2, 9, 255)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"", "no id, expected 1 .. 256 token ids"),
        (b"\n \n", "no id, "),
        (b"[]", "no id, "),
        (b"1\n2\n1\n", "id 1 twice, expected each of 0 .. 255 at most once; are they for this model's vocabulary?"),
        (b"1\n256\n", "id 256, expected each of 0 .. 255"),
        (b"-1\n", "id -1, expected"),
        (b"[1, 99999999999999999999999999999999999999]", "id 999999999999999999999999"),
        (b"1\ntwo\n", "line 2 is 'two', expected one token id"),
        (b"1 2\n", "line 1 is '1 2'"),
        (b"1" * 30, "line 1 is '111"),
        ("\N{ARABIC-INDIC DIGIT THREE}\n".encode(), "line 1 is "),
        (b"1\n\xff\n", "byte 2 is not UTF-8"),
        (b"\x00\x01", "line 1 is "),
        (b'{"d2t": [1]}', "a JSON dict, expected a list"),
        (b"[1, 2", "no JSON"),
        (b"[" * 100_000, "JSON nested more than 32 deep"),
        (b"[1, true]", "item 1 is True, expected a token id"),
        (b"[1.0]", "item 0 is 1.0"),
        (b'["1"]', "item 0 is '1'"),
        (b"[" + b"9" * 5000 + b"]", "no JSON"),
        (b"0\n" * (MAX_BYTES // 2 + 1), "more than 8 MiB"),
        (b"0\n0\n0\n4\n", "they look like offsets (id - row, EAGLE-3's d2t): add the row number"),
        (b"GGUF", "the file is cut short"),
    ],
)
def test_what_is_no_list_of_ids_is_refused_in_one_line(tmp_path, raw, expected):
    path = tmp_path / "ids"
    path.write_bytes(raw)
    with pytest.raises(MtprefError) as refused:
        read_draft_ids(path, 256)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_files_that_cannot_be_read_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "none", tmp_path / "a\0b"):
        with pytest.raises(MtprefError, match=r"^`Options.draft_ids` .*expected a number of ids or a file"):
            read_draft_ids(path, 256)


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (("other", "F32", (1,), np.zeros(4, np.uint8)), "tensor d2t is missing"),
        (("d2t", "F32", (2,), np.zeros(8, np.uint8)), "has type F32 and shape"),
        (("d2t", "I64", (1, 2), np.zeros(16, np.uint8)), "has type I64 and shape"),
        (d2t_tensor(range(257)), "has 257 ids, expected 1 .. 256"),
        (d2t_tensor([1, 300]), "id 300, expected each of 0 .. 255"),
        (d2t_tensor([0, 0, 1, 1]), "they look like offsets"),
        (d2t_tensor([7, 7, 0]), "id 7 twice"),
    ],
)
def test_a_d2t_that_is_none_is_refused(tmp_path, tensor, expected):
    write_gguf(tmp_path / "x.gguf", [("general.architecture", "eagle3", "str")], [tensor])
    with pytest.raises(MtprefError) as refused:
        read_draft_ids(tmp_path / "x.gguf", 256)
    assert expected in str(refused.value)


def test_ascending_offsets_that_are_valid_ids_cannot_be_told_and_are_taken_as_ids():
    assert check_draft_ids([0, 1, 4], 256, "x") == (0, 1, 4)


# ------------------------------------------------------------------------------------- a trimmed head


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q8_0"])
def test_products_with_gathered_rows_are_the_same_bits(kind):
    rng = np.random.default_rng(0)
    raw = quants.quantize(kind, rng.normal(size=(20, 64)).astype(np.float32)).view(np.uint8).reshape(-1)
    w, rows = Matrix("w", kind, 20, 64, raw), np.array([0, 3, 19, 7])
    x = rng.normal(size=(3, 64)).astype(np.float32)
    for product in (mul_mat_exact, mul_mat_ggml):
        assert product(take_rows(w, rows), x).tobytes() == product(w, x)[:, rows].tobytes()
    assert take_rows(w, rows).raw.size == 4 * w.row_bytes


@pytest.mark.parametrize("numerics", ["ggml", "exact"])
def test_logits_and_candidates_are_those_of_the_full_head_for_the_ids_alone(numerics):
    model = micro(60, numerics)
    trimmed = model.with_draft_ids(IDS)
    for seed in range(3):
        ids = prompt_of(5, seed)
        hidden = np.random.default_rng(seed).normal(size=(5, model.config.n_embd)).astype(np.float32)
        full = model.mtp(model.new_state(), ids, hidden, 0, n_logits=5).logits
        some = trimmed.mtp(trimmed.new_state(), ids, hidden, 0, n_logits=5).logits
        assert some.tobytes() == np.ascontiguousarray(full[:, IDS]).tobytes()
        drafted = Draft()
        run = HeadRun(0, ids, hidden, 0, 5)
        read_head(MtpDrafter(trimmed, Statistics()), trimmed.new_state(), run, DraftLength.of(1), drafted)
        (step,) = drafted.steps
        best = sorted(IDS, key=lambda id: (-full[-1][id], id))[:10]
        assert step.candidates == best
        assert step.margin == float(full[-1][best[0]]) - float(full[-1][best[1]])


def test_drafts_name_listed_ids_alone_and_the_text_is_the_same():
    model = micro(90)
    plain = run_decoder(model, PROMPT, 40, spec_type="none")
    run = run_decoder(model, PROMPT, 40, draft_ids=EVERY_THIRD)
    assert run.ids == plain.ids
    drafted = [id for e in run.events if isinstance(e, Drafted) for id in e.ids]
    assert set(drafted) <= set(EVERY_THIRD)
    assert any(id not in EVERY_THIRD for id in run.ids)
    assert 0 < run.statistics["n_accept"] < run_decoder(model, PROMPT, 40).statistics["n_accept"]
    assert run.decoder.state.digest() == run_decoder(model, PROMPT, 40, n_draft_vocab=1).decoder.state.digest()


def test_the_first_n_ids_are_the_list_of_them():
    listed = run_decoder(micro(60), PROMPT, 40, draft_ids=tuple(range(100)))
    assert decisions(listed) == decisions(run_decoder(micro(60), PROMPT, 40, n_draft_vocab=100))


@pytest.mark.parametrize("accept", ["match", "residual"])
def test_sampled_drafts_know_the_same_ids_by_list_and_by_count(accept):
    sampling = SamplingConfig(temp=1.5, top_k=0, top_p=0.9, min_p=0.0, seed=3, ignore_eos=True, accept=accept)
    listed = run_decoder(micro(60), PROMPT, 60, draft_ids=tuple(range(100)), sampling=sampling)
    assert decisions(listed) == decisions(run_decoder(micro(60), PROMPT, 60, n_draft_vocab=100, sampling=sampling))
    some = run_decoder(micro(60), PROMPT, 60, draft_ids=EVERY_THIRD, sampling=sampling)
    drafted = [id for e in some.events if isinstance(e, Drafted) for id in e.ids]
    assert drafted
    assert set(drafted) <= set(EVERY_THIRD)
    if accept == "match":
        assert some.ids == run_decoder(micro(60), PROMPT, 60, spec_type="none", sampling=sampling).ids


def test_a_list_in_any_order_breaks_ties_by_the_lower_id():
    rows = run_decoder(micro(60), PROMPT, 40, draft_ids=EVERY_THIRD[::-1])
    assert decisions(rows) == decisions(run_decoder(micro(60), PROMPT, 40, draft_ids=EVERY_THIRD))


def test_a_trace_names_the_list_by_its_digest():
    settings = run_decoder(micro(60), PROMPT, 2, draft_ids=IDS).events[0].settings
    assert settings["draft_ids"]["n"] == len(IDS)
    assert len(settings["draft_ids"]["sha256"]) == 64
    assert run_decoder(micro(60), PROMPT, 2).events[0].settings["draft_ids"] is None


def test_ids_and_rows_out_of_range_are_refused():
    with pytest.raises(MtprefError, match=r"draft_ids: id 256, expected each of 0 \.\. 255"):
        run_decoder(micro(60), PROMPT, 2, draft_ids=(1, 256))
    with pytest.raises(MtprefError, match=r"17 is out of range, expected 1 \.\. 16, the rows of the trimmed head"):
        run_decoder(micro(60), PROMPT, 2, draft_ids=IDS, n_draft_vocab=17)


# ---------------------------------------------------------------------- a head that the file has trimmed


def trimmed_parts(ids):
    """A micro model's file with a head of its own for these ids alone, in this order."""
    kv, tensors = copy_of(MICRO / "micro-60-q8_0.gguf")
    embd = next(t for t in tensors if t[0] == "token_embd.weight")
    rows = np.ascontiguousarray(embd[3]).view(np.uint8).reshape(embd[2][0], -1)[np.asarray(ids)]
    head = (f"blk.{n_trunk_layers(kv)}.nextn.shared_head_head.weight", embd[1], (len(ids), embd[2][1]), rows)
    return kv, [*tensors, head, d2t_tensor(ids)]


@pytest.mark.parametrize("order", [1, -1], ids=["ascending", "descending"])
def test_a_file_with_d2t_drafts_as_the_full_head_with_that_list(tmp_path, order):
    write_gguf(tmp_path / "m.gguf", *trimmed_parts(EVERY_THIRD[::order]))
    model = load(tmp_path / "m.gguf", make_recipe())
    assert not model.notes
    assert model.heads[0].weights.shared_head_head.n_out == len(EVERY_THIRD)
    assert model.weights.output.n_out == 256
    run = run_decoder(model, PROMPT, 40)
    full = run_decoder(micro(60), PROMPT, 40, draft_ids=EVERY_THIRD)
    assert decisions(run) == decisions(full)
    assert run.ids == full.ids
    some = EVERY_THIRD[10:60]
    run = run_decoder(model, PROMPT, 40, draft_ids=some)
    assert decisions(run) == decisions(run_decoder(micro(60), PROMPT, 40, draft_ids=some))
    with pytest.raises(MtprefError, match="id 1 is not among the 86 ids of the head's own d2t"):
        run_decoder(model, PROMPT, 2, draft_ids=(0, 1))
    with pytest.raises(MtprefError, match=r"expected 1 \.\. 86, the rows of the trimmed head"):
        run_decoder(model, PROMPT, 2, n_draft_vocab=87)


def test_a_stand_alone_head_with_d2t_is_read_and_its_output_may_be_short(tmp_path):
    kv, tensors = trimmed_parts(EVERY_THIRD)
    whole = copy_of(MICRO / "micro-60-q8_0.gguf")
    write_gguf(tmp_path / "trunk.gguf", *trunk_of(*whole))
    kept = [t for t in head_of(kv, tensors)[1] if "shared_head_head" not in t[0]]
    head = next(t for t in tensors if "shared_head_head" in t[0])
    short = ("output.weight", *head[1:])
    write_gguf(tmp_path / "head.gguf", kv, [*kept, short, tensors[-1]])
    model = load(tmp_path / "trunk.gguf", make_recipe(), model_draft=tmp_path / "head.gguf")
    full = run_decoder(micro(60), PROMPT, 40, draft_ids=EVERY_THIRD)
    assert decisions(run_decoder(model, PROMPT, 40)) == decisions(full)
    assert "output.weight" in SHARED


def test_inspect_finds_nothing_wrong_with_a_trimmed_head(tmp_path, capfdbinary):
    kv, tensors = trimmed_parts(EVERY_THIRD)
    write_gguf(tmp_path / "m.gguf", kv, tensors)
    assert main(["inspect", str(tmp_path / "m.gguf")]) == 0
    assert b"problems (0)" in capfdbinary.readouterr().out
    write_gguf(tmp_path / "m.gguf", kv, [t for t in tensors if "shared_head_head" not in t[0]])
    main(["inspect", str(tmp_path / "m.gguf")])
    assert b"shared_head_head.weight is missing" in capfdbinary.readouterr().out


def test_a_head_that_is_off_leaves_its_d2t_unread(tmp_path):
    write_gguf(tmp_path / "m.gguf", *trimmed_parts(EVERY_THIRD))
    model = load(tmp_path / "m.gguf", make_recipe(), mtp=False)
    assert model.heads == ()
    assert not model.notes


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: [x for x in t if "shared_head_head" not in x[0]], "the full head is no substitute"),
        (lambda t: [*t[:-1], d2t_tensor(EVERY_THIRD[:-1])], "expected (32, 85)"),
        (lambda t: [*t[:-1], d2t_tensor((0, *EVERY_THIRD[:-1]))], "tensor d2t: id 0 twice"),
        (lambda t: [*t[:-1], d2t_tensor((*EVERY_THIRD[:-1], 256))], "tensor d2t: id 256"),
    ],
)
def test_a_trimmed_head_that_does_not_fit_its_d2t_is_refused(tmp_path, change, expected):
    kv, tensors = trimmed_parts(EVERY_THIRD)
    write_gguf(tmp_path / "m.gguf", kv, change(tensors))
    with pytest.raises(MtprefError) as refused:
        load(tmp_path / "m.gguf", make_recipe())
    width = next(t for t in tensors if t[0] == "token_embd.weight")[2][1]
    assert expected.replace("32", str(width)) in str(refused.value)


# ----------------------------------------------------------------------------------- the command line


def test_the_option_takes_a_count_or_a_file(tmp_path, capfdbinary):
    path = tmp_path / "ids.json"
    path.write_text(json.dumps(list(range(0, 2048, 2))))
    texts, rates = [], []
    for value in ("2048", "1024", str(path)):
        assert main(["generate", "-n", "24", "-p", "import ", "--json", "--spec-draft-vocab", value]) == 0
        record = json.loads(capfdbinary.readouterr().out)
        texts.append(record["ids"])
        rates.append(record["statistics"]["n_accept"])
    assert texts[0] == texts[1] == texts[2]
    assert rates[2] < rates[0]
    path.write_text("1\n2048\n")
    assert main(["generate", "-p", "x", "--spec-draft-vocab", str(path)]) == 2
    assert b"id 2048, expected each of 0 .. 2047" in capfdbinary.readouterr().err
