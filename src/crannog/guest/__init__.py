"""What runs inside guests: standard library only, and nothing else of this package."""
