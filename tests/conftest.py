"""What all tests have: a hang-up ends what it is meant to end, and the same code is tested with the same examples."""

import signal

from hypothesis import settings

# Ignored signals are inherited by whatever is started: where nohup runs the tests, programs would outlive a hang-up.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# No example fails because the machine was busy just then.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("same")
