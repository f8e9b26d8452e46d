"""What all tests start from: signals as a terminal would have them."""

import signal

# Who runs the tests in the background lets them ignore Ctrl-C, and with them every command they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
