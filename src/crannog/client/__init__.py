"""The client of the Admin API that every tool uses: standard library only."""
