"""`python -m crannog.daemon` is crannogd."""

import sys

from crannog.daemon.main import main

sys.exit(main())
