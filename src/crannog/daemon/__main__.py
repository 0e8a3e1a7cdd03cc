"""`python -m crannog.daemon` is crannogd."""

from crannog.daemon.main import main

main()
