"""Pool drivers: where volumes are kept."""
