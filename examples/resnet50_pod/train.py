"""Train ResNet-50 elastically: the script that JobClients, horovodrun or a person start, once per worker.

It is a usual PyTorch script with EDL's lines in it. Images, model and optimizer are built before the gate, on this
machine alone; train() runs behind it and is entered again after each resize, where the state says how far it came.
"""

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import edl_collective as edl
from data import DataError, Sample, Split, open_split, to_input
from distill.errors import DistillError
from distill.losses import LossError
from distilling import ChannelsFirst, Criterion, make_criterion, with_teachers
from evaluation import ShareOfEvaluation, average_batch_norm, count_hits
from models import build_model
from options import Options, parse_options
from recipe import autocast, make_batch_policy, make_optimizer, make_scaler, make_schedule


def make_model(options: Options, classes: int, device: torch.device) -> nn.Module:
    """The network on its device, initialised from the seed."""
    torch.manual_seed(options.seed)
    model = build_model(options.model, classes, small_images=options.small_images)
    # Its images are channels last, its weights are not: Horovod reduces contiguous gradients only.
    return model.to(device)


def make_loader(options: Options, split: Split, sampler: edl.ElasticBatchSampler) -> "DataLoader[Sample]":
    """Batches of the training images in this rank's part of the global order."""
    images: Dataset[Sample] = ChannelsFirst(split.train) if options.distill.use else split.train
    return DataLoader(
        images,
        batch_sampler=sampler,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=torch.cuda.is_available(),
    )


def make_evaluation_loader(options: Options, split: Split) -> "DataLoader[Sample]":
    """Batches of this rank's share of the held-out images; its processes live for one evaluation."""
    batches = ShareOfEvaluation(len(split.val), 128, lambda: (edl.rank(), edl.size()))
    return DataLoader(split.val, batch_sampler=batches, num_workers=options.workers)


def train(options: Options) -> None:
    """One worker's part of the training, from start to end."""
    edl.init()
    device = edl.device()
    split = open_split(options.data, size=options.image_size, augmentation=options.augmentation, seed=options.seed)
    model = make_model(options, len(split.train.classes), device)
    optimizer = make_optimizer(model, options)
    criterion: Criterion = make_criterion(options)
    policy = make_batch_policy(options, len(split.train))
    sampler = edl.ElasticBatchSampler(len(split.train), policy, seed=options.seed)
    # With a teacher service each batch has the teacher's logits behind its labels.
    loader = with_teachers(options, make_loader(options, split, sampler), len(split.train.classes))
    held_out = make_evaluation_loader(options, split)

    def forward(pixels: Tensor) -> Tensor:
        with autocast(options, device):
            logits: Tensor = model(to_input(pixels, device))
        return logits.float()

    def loss_of(batch: Sequence[Tensor]) -> Tensor:
        pixels, labels, *answers = (part.to(device, non_blocking=True) for part in batch)
        # Teachers are sent channels first, the network here takes channels last.
        return criterion(forward(pixels.permute(0, 2, 3, 1) if options.distill.use else pixels), labels, answers)

    state = edl.State(
        model=model,
        optimizer=optimizer,
        sampler=sampler,
        schedule=make_schedule(options),
        scaler=make_scaler(options, device),
        checkpoint_url=options.checkpoint or edl.checkpoint_url(),
        loader=loader,
        warm_up=loss_of,
    )

    @edl.run
    def run(state: edl.State) -> None:
        for epoch in state.epochs(options.epochs):
            split.train.set_epoch(epoch)
            model.train()
            criterion.begin()
            for batch in state.batches(loader):
                state.backward(loss_of(batch), len(batch[1]))
                state.step()
            state.report(**criterion.means(edl.sum_across))
            average_batch_norm(model, edl.size(), edl.sum_across)
            if (epoch + 1) % options.evaluate_every == 0 or epoch + 1 == options.epochs:
                counts = edl.sum_across(count_hits(model, held_out, forward))
                state.report(**accuracies(counts))

    run(state)


def accuracies(counts: list[float]) -> dict[str, float]:
    """The shares of hits from the counts of count_hits, added over all ranks."""
    images, best_1, best_5 = counts
    return {"accuracy": best_1 / images, "acc5": best_5 / images}


def main() -> int:
    """Train as the arguments say; exit code 2 with one line when they or the images are wrong."""
    options = parse_options(sys.argv[1:], os.environ, Path.cwd())
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        train(options)
    except DataError as error:
        # From a DataLoader process the message is a traceback that ends with the error's name and sentence.
        print(f"train.py: {str(error).strip().rsplit('DataError: ', 1)[-1]}", file=sys.stderr)
        return 2
    except (DistillError, LossError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
