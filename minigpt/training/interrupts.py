"""Ctrl-C during a training step: the step is finished first, so that no state is half changed."""
import signal
import threading
from contextlib import contextmanager


@contextmanager
def finish_step_first():
    """Delays Ctrl-C to the end of the `with` block, where it raises KeyboardInterrupt.

    A second Ctrl-C inside the block acts at once. Afterwards Ctrl-C does what it did before, also
    when such blocks stand one inside another. Nothing changes where Ctrl-C is ignored, and outside
    the main thread, which is the only one that signals reach.
    """
    before = signal.getsignal(signal.SIGINT)
    in_main_thread = threading.current_thread() is threading.main_thread()
    if not in_main_thread or before in (signal.SIG_IGN, None):
        yield
        return
    presses = 0

    def count(number, frame):
        nonlocal presses
        presses += 1
        if presses > 1:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, count)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if presses:
        raise KeyboardInterrupt
