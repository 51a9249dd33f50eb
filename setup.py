"""What pyproject.toml cannot say: pages and golden vectors in the wheel, a build folder that goes, links of the index.

MTPREF_URL, the address of the published tree (as https://HOST/OWNER/mtpref/blob/main), makes the project's URLs and
absolute links in the long description. Without it links to pages are named as `mtpref docs PAGE`, since those are in
the wheel.
"""

import atexit
import os
import re
import shutil
import tempfile
from pathlib import Path

from setuptools import setup
from setuptools.command.build import build
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
URL = os.environ.get("MTPREF_URL", "").rstrip("/")
# What the package gets besides its modules: folder of the tree, folder of the package, endings.
CARRIED = (
    ("docs", "mtpref/pages", (".md", ".svg", ".png", ".json")),
    ("golden", "mtpref/golden_vectors", (".md", ".json", ".gguf", ".bin", ".npz", "LICENSE", "VERSION", ".cpp", ".h",
                                         "Makefile")),
)  # fmt: skip


class Build(build):
    """In a folder of its own, so that nothing of one build is in the next wheel."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_base = tempfile.mkdtemp(prefix="mtpref-build-")
        atexit.register(shutil.rmtree, self.build_base, ignore_errors=True)


class BuildPy(build_py):
    """The modules, then what CARRIED names. An editable install has the tree itself."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        for source, target, endings in CARRIED:
            for path in sorted((ROOT / source).rglob("*")):
                place = Path(self.build_lib) / target / path.relative_to(ROOT / source)
                if path.is_file() and path.name.endswith(endings):
                    place.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(path, place)


def long_description() -> str:
    """README.md for a page that is not in the tree."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")

    def linked(match: re.Match[str]) -> str:
        mark, words, target = match.groups()
        if target.startswith(("http://", "https://", "#")):
            return match[0]
        if URL:
            base = URL.replace("/blob/", "/raw/") if mark else URL
            return f"{mark}[{words}]({base}/{target})"
        page = re.fullmatch(r"docs/([\w/-]+)\.md(#.*)?", target)
        return "" if mark else f"{words} (`mtpref docs {page[1]}`)" if page else words

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", linked, text)


def project_urls() -> dict[str, str]:
    if not URL:
        return {}
    home = URL.split("/blob/")[0]
    return {"Homepage": home, "Documentation": f"{URL}/docs/spec.md", "Changelog": f"{URL}/CHANGELOG.md",
            "Issues": f"{home}/issues"}  # fmt: skip


setup(
    cmdclass={"build": Build, "build_py": BuildPy},
    long_description=long_description(),
    long_description_content_type="text/markdown",
    project_urls=project_urls(),
)
