"""The tests. A shell that runs them in the background ignores Ctrl-C, and so would every command that they start."""

import signal

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
