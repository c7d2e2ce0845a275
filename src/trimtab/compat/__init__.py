"""Other packages' names for what this one does: thin, so that their examples run as they stand."""
