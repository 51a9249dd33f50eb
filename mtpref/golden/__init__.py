"""Golden vectors: the format, mtpref as a port of it, and the check of any port.

Read in this order: format (what a file holds), port (mtpref answers a case), check (expected against answered).
The committed vectors and their normative page are golden/ and golden/README.md; tools/make_golden.py writes them.
"""

from mtpref.golden.check import CaseResult, check_case, check_folder
from mtpref.golden.format import Case, Expected, Folder, Suite, Tensor
from mtpref.golden.models import Port

__all__ = ["Case", "CaseResult", "Expected", "Folder", "Port", "Suite", "Tensor", "check_case", "check_folder"]
