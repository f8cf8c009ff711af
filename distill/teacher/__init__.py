"""The teacher server: a model that answers students over the Open Inference Protocol.

How a request goes: a connection (one thread serves all) receives the tensors into a buffer that is used again and
again, the service checks them against the model's signature, the queue joins what may run together, a replica's thread
runs the model, and the connection sends the answer from where it lies. Importing this package loads no torch.
"""
