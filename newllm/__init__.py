"""newllm: experiments on a fixed-memory recurrent language model against honest baselines."""

__version__ = "0.1.0"
