"""What cleaning is made of: pure functions from text to text, to figures, and to signatures."""
