"""Run `mtpref check` on every single fault of tests/single_faults.py and print what it says of each: some 600 files.

usage: python tools/check_single_faults.py [PART OF A TENSOR'S NAME...]
"""

import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from mtpref.heads.check import check_path
from tests.single_faults import altered, faults_of, is_told_rightly, values


def main(wanted: list[str]) -> int:
    all_values = values()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        for name in all_values:
            if wanted and not any(part in name for part in wanted):
                continue
            for label, x in faults_of(name, all_values).items():
                report = check_path(altered(Path(folder) / "x.gguf", name, x))
                said = [f for f in report.findings if f.severity in ("fail", "warning")]
                wrong = [f for f in said if not is_told_rightly(name, f)]
                verdict = "WRONG" if wrong else "told" if said else "silent"
                counts[verdict] += 1
                a = next((f.text.split()[1] for f in report.findings if f.id == "acceptance"), "-")
                print(
                    f"{verdict:6s} {a:5s} {name} {label}: {'; '.join(f'{f.id} ({f.what})' for f in said)}", flush=True
                )
    print(dict(counts))
    return 1 if counts["WRONG"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
