"""The run directory: what a run is, who owns it, how it is loaded, gathered and resumed."""
