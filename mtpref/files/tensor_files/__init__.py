"""Named arrays in the containers that other languages read: NumPy's npz and npy, safetensors.

Owns both containers, each with limits on what a file may claim. Knows nothing of models. GGUF is mtpref/files/gguf.
"""

from mtpref.files.gguf import write_whole
from mtpref.files.tensor_files.npz import NpzFile, write_npz
from mtpref.files.tensor_files.safetensors import SafetensorsFile, write_safetensors

__all__ = ["NpzFile", "SafetensorsFile", "write_npz", "write_safetensors", "write_whole"]
