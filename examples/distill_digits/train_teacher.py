"""Train the teacher of this example and write its weights, for `edl teacher serve` to serve wherever you like.

run.py does this by itself; this command is for teachers that run elsewhere.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

import nets
from digits import MEAN, SHAPE, STD, Images, Shifted, normalised, split

EPOCHS, LR, BATCH = 20, 0.05, 64

#: how the server is told what it serves; it runs in this folder
SERVE_OPTIONS = (
    "--model", "nets:teacher", "--input", "image:uint8:" + ",".join(map(str, SHAPE)),
    "--mean", str(MEAN), "--std", str(STD), "--threads", "1",
)  # fmt: skip


def train_teacher(images: Images, *, epochs: int = EPOCHS, seed: int = 0) -> nn.Module:
    """A teacher that has learned the images with their true labels, in evaluation mode."""
    torch.manual_seed(seed)
    model = nets.teacher()
    shifted = Shifted(images, seed=seed)
    loader = DataLoader(shifted, batch_size=BATCH, shuffle=True)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * len(loader))
    for epoch in range(epochs):
        shifted.set_epoch(epoch)
        for pixels, labels in loader:
            optimizer.zero_grad()
            functional.cross_entropy(model(normalised(pixels)), labels).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def accuracy(model: nn.Module, images: Images) -> float:
    """The share of the images that the model, in evaluation mode, gets right."""
    was_training = model.training
    model.eval()
    hits = model(normalised(images.pixels)).argmax(1) == images.labels
    model.train(was_training)
    return float(hits.float().mean())


def main() -> int:
    """Train, write, and say how to serve it."""
    parser = argparse.ArgumentParser(prog="train_teacher.py", description=__doc__)
    parser.add_argument("checkpoint", type=Path, metavar="FILE.pt", help="where the weights go")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="(%(default)s)")
    args = parser.parse_args()
    if args.checkpoint.suffix != ".pt":
        parser.error(f"{args.checkpoint} must end in .pt, by which the server knows what it is")
    if args.epochs < 1:
        parser.error(f"--epochs must be at least 1, not {args.epochs}")
    train, test = split()
    model = train_teacher(train, epochs=args.epochs)
    torch.save(model.state_dict(), args.checkpoint)
    print(f"test accuracy {accuracy(model, test):.1%}. Serve it, in this folder, with")
    print(f"  edl teacher serve --checkpoint {args.checkpoint.absolute()} {' '.join(SERVE_OPTIONS)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
