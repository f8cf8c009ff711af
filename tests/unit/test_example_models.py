"""The example's networks: their published sizes, the shapes that they keep, and that they learn."""

import pytest
import torch
from torch import Tensor, nn

from models import MODELS, Bottleneck, build_model


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    [("resnet50", 25_557_032), ("resnet50_vd", 25_576_264)],
)
def test_resnets_have_the_published_number_of_parameters(name: str, published: int) -> None:
    with torch.device("meta"):
        assert parameters(build_model(name, 1000)) == published


def test_tiny_model_is_tiny() -> None:
    assert parameters(build_model("tiny", 10)) < 20_000


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(("size", "small_images"), [(8, True), (32, False), (33, False), (40, True)])
def test_every_model_maps_images_of_many_sizes_to_logits(name: str, size: int, small_images: bool) -> None:
    with torch.device("meta"):
        model = build_model(name, 7, small_images=small_images)
        assert model(torch.zeros(2, 3, size, size)).shape == (2, 7)


@pytest.mark.parametrize("vd", [False, True])
@pytest.mark.parametrize(("inputs", "stride"), [(64, 1), (64, 2), (256, 1)])
def test_a_new_block_passes_on_its_shortcut(vd: bool, inputs: int, stride: int) -> None:
    block = Bottleneck(inputs, 64, stride, average_shortcut=vd)
    x = torch.randn(2, inputs, 6, 6)
    assert torch.equal(block(x), block.shortcut(x).relu())


def test_the_shortcut_of_vd_uses_every_position() -> None:
    def used(block: Bottleneck) -> Tensor:
        x = torch.ones(2, 8, 4, 4, requires_grad=True)
        block.eval()
        block.shortcut(x).sum().backward()
        assert x.grad is not None
        return x.grad.ne(0).float().mean()

    assert used(Bottleneck(8, 4, 2, average_shortcut=True)) == 1
    assert used(Bottleneck(8, 4, 2, average_shortcut=False)) == 0.25


def test_two_samples_of_one_pixel_suffice_for_training() -> None:
    model = build_model("resnet50", 10)
    loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 32, 32)), torch.tensor([0, 1]))
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_the_tiny_model_learns_to_tell_two_patterns() -> None:
    torch.manual_seed(0)
    images = torch.zeros(16, 3, 16, 16)
    images[::2, :, :8] = 1.0
    labels = torch.arange(16) % 2
    model = build_model("tiny", 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(images + 0.1 * torch.randn_like(images)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert loss.item() < 0.1


def test_equal_seeds_give_equal_models() -> None:
    def first_weights(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return next(build_model("tiny", 10).parameters())

    assert torch.equal(first_weights(3), first_weights(3))
    assert not torch.equal(first_weights(3), first_weights(4))


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown model 'vgg': choose one of resnet50, resnet50_vd, tiny"):
        build_model("vgg", 10)


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2 classes, not 1"):
        build_model("tiny", 1)
