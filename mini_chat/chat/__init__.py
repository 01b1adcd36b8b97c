"""Talking to a trained model: the engine that generates, and the terminal in front of it."""
