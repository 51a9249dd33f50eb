"""Models on a server, read by ranges: URLs and hf: names (place.py, hub.py), HTTP within limits (http.py), files
(ranges.py), GGUF and safetensors over them. docs/keeping-the-head.md says what is promised."""

from mtpref.files.remote.gguf import open_remote_gguf
from mtpref.files.remote.http import Client, Token
from mtpref.files.remote.limits import Limits, Meter
from mtpref.files.remote.place import Place, find
from mtpref.files.remote.ranges import NotThereError, RemoteFile
from mtpref.files.remote.safetensors import RemoteSafetensors
from mtpref.files.remote.spool import Spool

__all__ = [
    "Client",
    "Limits",
    "Meter",
    "NotThereError",
    "Place",
    "RemoteFile",
    "RemoteSafetensors",
    "Spool",
    "Token",
    "find",
    "open_remote_gguf",
]
