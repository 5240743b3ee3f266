"""What inference engines make of a model: which files they read, how, and what first. Pure."""
