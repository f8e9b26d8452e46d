"""What all tests start from: signals as a terminal would have them."""

import signal

# Who runs the tests in the background, or by nohup, lets them ignore Ctrl-C or the end of the terminal,
# and with them every command they start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
