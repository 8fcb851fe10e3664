"""Synthetic tasks with exact answers: state tracking and memory."""
