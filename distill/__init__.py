"""Service distillation: students that learn from teachers which run as elastic services elsewhere.

`distill.losses` compares a student's outputs with a teacher's. Importing this package loads no torch.
"""
