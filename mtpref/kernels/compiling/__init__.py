"""How kernels are compiled, kept on disk, told what they get, and called. It twins nothing."""
