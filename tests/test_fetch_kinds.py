"""`mtpref fetch --head` of every architecture and every format of weights: what is taken is what the whole gives."""

from pathlib import Path

import pytest

from mtpref.front import cli
from tests import moe_folder
from tests.hf_folder import read_state
from tests.micro_moe import NAMES, standard
from tests.quantised_folder import CASES, case_folder
from tests.range_server import serving
from tests.samples import one_in

STREAMS = "deepseek4"
ONE_EACH = {STREAMS: f"micro-{STREAMS}-f32"} | {
    name.partition("-30")[0].partition("-60")[0].partition("-90")[0]: name for name in NAMES
}


@pytest.mark.parametrize("name", one_in(2, ONE_EACH.values()))
def test_gguf(name, tmp_path, capsys):
    path = standard(name)
    assert cli.main(["extract", str(path), "-o", str(tmp_path / "a.gguf")]) == 0
    with serving({"/m.gguf": path.read_bytes()}) as server:
        assert cli.main(["fetch", f"{server.url}/m.gguf"]) == 0
        assert cli.main(["fetch", f"{server.url}/m.gguf", "--head", "-o", str(tmp_path / "b.gguf")]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def both_convert(whole: Path, tmp_path, capsys):
    """The head's file, of the whole folder and of the small one that was fetched."""
    small = tmp_path / "small" / whole.name  # the name of a folder is a key of its model
    with serving({f"/ck/{path.name}": path.read_bytes() for path in whole.iterdir()}) as server:
        assert cli.main(["fetch", f"{server.url}/ck/"]) == 0, capsys.readouterr()
        assert "verdict: the head is there" in capsys.readouterr().out
        assert cli.main(["fetch", f"{server.url}/ck/", "--head", "-o", str(small)]) == 0, capsys.readouterr()
    made = []
    for folder in (whole, small):
        target = tmp_path / "made.gguf"
        words = ["convert", "--mtp", "--allow-unmapped", "--force", str(folder), "-o", str(target)]
        assert cli.main(words) == 0, capsys.readouterr()
        made.append(target.read_bytes())
    assert made[0] == made[1]


@pytest.mark.parametrize("is_fused", [False, True])
@pytest.mark.parametrize("arch", moe_folder.ARCHS)
@pytest.mark.covering
def test_experts(arch, is_fused, tmp_path, capsys):
    both_convert(moe_folder.folder(tmp_path / "model", arch, fused=is_fused), tmp_path, capsys)


def test_streams(tmp_path, capsys):
    """A head with streams of its own, and tensors at the root of the folder that are its own."""
    both_convert(moe_folder.folder(tmp_path / "model", STREAMS), tmp_path, capsys)


@pytest.mark.parametrize("name", one_in(3, CASES))
def test_quantised(name, tmp_path, capsys):
    """Codes, scales and whatever stands beside them come along, as they are stored."""
    case = CASES[name]
    both_convert(case_folder(tmp_path / "model", case, *read_state()), tmp_path, capsys)
