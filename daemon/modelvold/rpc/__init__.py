"""gRPC doors. A door translates words and errors, and decides nothing."""
