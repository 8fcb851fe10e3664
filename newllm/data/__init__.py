"""Corpora, the grammar behind them, tokenizers and batches."""
