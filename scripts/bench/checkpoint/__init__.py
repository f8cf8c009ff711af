"""What saving and loading a state costs, beside PyTorch's own ways."""
