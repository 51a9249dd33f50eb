"""S76: which cells a query sees through a window."""


def window_start(pos: int, n_window: int) -> int:
    """S76. The first position that a query sees of those before it: its window holds itself and n_window - 1 others."""
    return max(0, pos - n_window + 1)
