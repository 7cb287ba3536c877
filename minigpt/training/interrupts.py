"""Ctrl-C during a training step: the step ends first, and then `training.loop.train` saves."""
import signal
import threading
from contextlib import contextmanager


@contextmanager
def finish_step_first():
    """Delays Ctrl-C to the end of the `with` block, where it raises KeyboardInterrupt.

    A second Ctrl-C inside the block acts at once. After the block, Ctrl-C does what it did before
    it. Nothing changes where Ctrl-C is ignored, or outside the main thread, because Python delivers
    signals only to the main thread.
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
