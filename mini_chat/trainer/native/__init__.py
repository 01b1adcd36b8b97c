"""What is written in C++ and compiled where it runs."""
