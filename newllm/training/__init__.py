"""One run: built from its configuration, checked, trained, recorded."""
