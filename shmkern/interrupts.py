# SPDX-License-Identifier: GPL-2.0-only
"""Ctrl-C and its like, put off."""
import contextlib
import os
import signal
import threading
from pathlib import Path
# As in signal, which gives each number its name: that takes twenty times as long, in each request to init.
from _signal import getsignal, pthread_sigmask

# All but what a process does to itself: blocked, that would end it at once.
_FROM_OUTSIDE = signal.valid_signals() - {signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV,
                                          signal.SIGSYS, signal.SIGTRAP}


@contextlib.contextmanager
def deadly():
    """Ctrl-C ends the process at once, where it would be a KeyboardInterrupt.  For imports, in which
    that may come out as anything."""
    before = signal.getsignal(signal.SIGINT)
    if before == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def later():
    """Ctrl-C and all other signals from outside have their effect when this is over.  Gives what ends it,
    for a child that is forked within and does not come to the end of this.

    A handler that raises must not run where nobody would clean up what is half made; nor in the
    callbacks of a fork, for Python drops what is raised there.
    """
    before = pthread_sigmask(signal.SIG_BLOCK, ())
    handlers, caught = {}, []

    def note(number, _frame):
        caught.append(number)

    def end(come=()):
        try:
            while handlers:
                number, handler = next(iter(handlers.items()))
                # Unless a child has set another one.
                if getsignal(number) is note:
                    signal.signal(number, handler)
                del handlers[number]
            # Blocked still: with the others, when they are not.
            while come:
                signal.raise_signal(come[0])
                del come[0]
            pthread_sigmask(signal.SIG_SETMASK, before)
        except BaseException:
            # Of a handler that is back: another thread has got its signal meanwhile.  The rest all the same.
            end(come)
            raise

    try:
        # Within: a signal that came just before has its effect in this call, with the others blocked.
        pthread_sigmask(signal.SIG_BLOCK, _FROM_OUTSIDE)
        # Blocked here it comes to another thread, if the program has some, and is handled in the main one all
        # the same.
        if threading.current_thread() is threading.main_thread():
            for number in _FROM_OUTSIDE:
                handler = getsignal(number)
                if callable(handler):
                    handlers[number] = handler
                    signal.signal(number, note)
        yield end
    finally:
        end(caught)


def write_whole(path, text):
    """Writes a file; who is told to end meanwhile does so when all of it is there.  Raises OSError."""
    # What has no end by itself, such as a pipe that nobody reads, can be interrupted.
    regular = os.path.isfile(path) or not os.path.exists(path)
    with later() if regular else contextlib.nullcontext():
        # Whatever the locale says; a file's name may have bytes that are no text.
        Path(path).write_text(text, encoding="utf-8", errors="backslashreplace")
