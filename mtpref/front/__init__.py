"""The front: the library's door, the command line, the chapters."""
