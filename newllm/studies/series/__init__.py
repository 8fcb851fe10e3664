"""The published series beside its reproduction."""
