"""The command edl."""
