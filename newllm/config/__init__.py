"""Configurations: where they lie, every fault of them as one clear line, building from them."""
