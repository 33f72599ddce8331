"""What happens to a config before a Runner gets it."""
