"""A runtime whose model is a file: its zygote forks a server that reads the file, and answers from it."""
