"""The job of the bench, once for each system: the same model, data, batch and step; only the elastic part differs."""
