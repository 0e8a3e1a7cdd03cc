"""What every adapter of a port keeps to: the same tests for the real ones and for the fakes."""
