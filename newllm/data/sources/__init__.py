"""Where sentences come from: the grammar and the corpora."""
