"""The example's arguments, the parts built from them, its evaluation in shares, and its packaging hook."""

import os
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edl_collective.scaling import CosineLR, OneCycleLR, PerWorkerBatch, TotalBatch
from evaluation import ShareOfEvaluation, average_batch_norm, count_hits
from models import MODELS, build_model
from options import MODEL_NAMES, Options, parse_options
from recipe import autocast, make_batch_policy, make_optimizer, make_scaler, make_schedule
from train import accuracies, make_model

HOOK = Path(__file__).resolve().parents[2] / "examples" / "resnet50_pod" / "package.sh"
NOWHERE = Path("/nowhere")


def options(*argv: str) -> Options:
    return parse_options(["--data", "/images", *argv], {}, NOWHERE)


def test_the_command_line_comes_before_the_environment_and_that_before_the_links(tmp_path: Path) -> None:
    for name in ("ImageNet", "fleet_checkpoints"):
        (tmp_path / name).mkdir()
    env = {
        "PADDLE_EDL_IMAGENET_PATH": "/old",
        "EDL_IMAGENET_PATH": "/new",
        "PADDLE_EDL_FLEET_CHECKPOINT_PATH": "hdfs://h/old",
    }
    said = parse_options(["--data", "/said", "--checkpoint", "said"], env, tmp_path)
    assert (said.data, said.checkpoint) == (Path("/said"), f"file://{tmp_path}/said")
    found = parse_options([], env, tmp_path)
    assert (found.data, found.checkpoint) == (Path("/new"), "hdfs://h/old")
    linked = parse_options([], {}, tmp_path)
    assert (linked.data, linked.checkpoint) == (tmp_path / "ImageNet", f"file://{tmp_path}/fleet_checkpoints")
    assert options().checkpoint is None


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--epochs", "0"], "argument --epochs: must be at least 1, not 0"),
        (["--epochs", "many"], "argument --epochs: must be a whole number, not 'many'"),
        (["--lr", "-1"], "argument --lr: must be at least 0"),
        (["--lr", "nan"], "argument --lr: must be at least 0"),
        (["--momentum", "1"], "argument --momentum: must be at least 0 and less than 1, not 1"),
        (["--total_batch_size", "1"], "argument --total_batch_size: must be at least 2, not 1"),
        (["--model", "vgg"], "invalid choice: 'vgg'"),
        (["--epochs", "5", "--warmup_epochs", "5"], "--warmup_epochs 5 must be less than --epochs 5"),
        (["--decay_epochs", "60", "30"], "--decay_epochs 60 30 must rise and lie between 0 and --epochs 90"),
        ([], "no images: give --data FOLDER, or set EDL_IMAGENET_PATH"),
    ],
)
def test_a_wrong_argument_is_one_line_and_exit_code_2(
    argv: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_options(argv, {}, NOWHERE)
    lines = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert len(lines) == 1
    assert sentence in lines[0]


def test_every_offered_model_exists() -> None:
    assert set(MODEL_NAMES) == set(MODELS)


def test_the_learning_rate_follows_the_batch_unless_it_is_said() -> None:
    assert options("--total_batch_size", "1024").lr == pytest.approx(0.4)
    assert options("--batch_policy", "per_worker", "--worker_batch_size", "64").lr == pytest.approx(0.025)
    assert options("--lr", "0.05").lr == 0.05


def test_schedules_peak_at_the_rate_asked_for() -> None:
    assert make_schedule(options("--lr_schedule", "cosine", "--lr", "0.4")) == CosineLR(0.4, 90)
    one = make_schedule(options("--lr_schedule", "onecycle", "--lr", "0.4", "--epochs", "10", "--warmup_epochs", "2"))
    assert one == OneCycleLR(0.4, 10, climb_fraction=0.2)
    warm = make_schedule(options("--lr_schedule", "piecewise", "--lr", "0.4", "--warmup_epochs", "5"))
    assert warm.at_epoch(2.5) == pytest.approx(0.2)
    assert [warm.at_epoch(e) for e in (29.9, 30, 60, 80)] == pytest.approx([0.4, 0.04, 0.004, 0.0004])


def test_batch_policies_keep_two_images_for_batch_norm() -> None:
    assert make_batch_policy(options("--total_batch_size", "64"), 1000) == TotalBatch(64, min_local_batch=2)
    growing = make_batch_policy(options("--batch_policy", "per_worker", "--worker_batch_size", "16"), 1000)
    assert growing == PerWorkerBatch(16, warmup_samples=1000, min_local_batch=2)


def test_norms_and_biases_are_not_decayed() -> None:
    model = build_model("tiny", 10)
    optimizer = make_optimizer(model, options("--weight_decay", "0.1"))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == (p.ndim == 1), name


@pytest.mark.parametrize(
    ("precision", "dtype", "scaled"),
    [("fp32", torch.float32, False), ("bf16-autocast", torch.bfloat16, False), ("fp16", torch.float16, True)],
)
def test_precision_of_the_forward_pass(precision: str, dtype: torch.dtype, scaled: bool) -> None:
    chosen, cpu = options("--precision", precision), torch.device("cpu")
    with autocast(chosen, cpu):
        assert nn.Linear(4, 4)(torch.ones(2, 4)).dtype == dtype
    assert (make_scaler(chosen, cpu) is not None) == scaled


@pytest.mark.parametrize("samples", [0, 1, 7, 100])
@pytest.mark.parametrize("size", [1, 2, 3, 8])
def test_every_image_is_evaluated_by_one_rank(samples: int, size: int) -> None:
    shares = [ShareOfEvaluation(samples, 4, lambda rank=rank: (rank, size)) for rank in range(size)]  # type: ignore[misc]
    batches = [batch for share in shares for batch in share]
    assert sorted(index for batch in batches for index in batch) == list(range(samples))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    assert all(1 <= len(batch) <= 4 for batch in batches)


def test_a_share_follows_the_world() -> None:
    world = (0, 1)
    share = ShareOfEvaluation(6, 10, lambda: world)
    assert list(share) == [[0, 1, 2, 3, 4, 5]]
    world = (1, 3)
    assert list(share) == [[1, 4]]


def test_hits_are_counted_among_the_best_1_and_5() -> None:
    model = nn.Dropout()
    logits = torch.arange(8.0).repeat(3, 1)  # best is class 7, then 6, 5, 4, 3

    def forward(pixels: Tensor) -> Tensor:
        assert not model.training
        return logits[: len(pixels)]

    batches = [(torch.zeros(3), torch.tensor([7, 4, 2])), (torch.zeros(1), torch.tensor([7]))]
    assert count_hits(model, batches, forward) == [4.0, 2.0, 3.0]
    assert model.training


def test_fewer_than_five_classes_can_be_evaluated() -> None:
    counts = count_hits(nn.Identity(), [(torch.eye(2), torch.tensor([0, 0]))], lambda pixels: pixels)
    assert counts == [2.0, 1.0, 2.0]


def test_averaging_gives_all_ranks_the_mean_statistics() -> None:
    def model(mean: float) -> nn.BatchNorm2d:
        norm = nn.BatchNorm2d(2)
        assert norm.running_mean is not None
        norm.running_mean.fill_(mean)
        return norm

    others = [0.0, 0.0, 1.0, 1.0]  # what a fresh second rank sends: means, then variances

    def add(values: list[float]) -> list[float]:
        return [a + b for a, b in zip(values, others, strict=True)]

    mine = model(3.0)
    average_batch_norm(mine, 2, add)
    assert mine.running_mean is not None
    assert mine.running_var is not None
    assert (mine.running_mean.tolist(), mine.running_var.tolist()) == ([1.5, 1.5], [1.0, 1.0])
    assert mine.num_batches_tracked is not None
    assert mine.num_batches_tracked.dtype == torch.int64


def test_the_model_is_initialised_from_the_seed_and_has_contiguous_gradients() -> None:
    cpu = torch.device("cpu")
    one, same, other = (make_model(options("--model", "tiny", "--seed", seed), 10, cpu) for seed in ("1", "1", "2"))
    weights = [next(model.parameters()) for model in (one, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    channels_last = torch.randn(4, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    one(channels_last).sum().backward()
    assert all(p.grad is not None and p.grad.is_contiguous() for p in one.parameters())


def test_accuracies_are_shares_of_all_images() -> None:
    assert accuracies([200.0, 150.0, 190.0]) == {"accuracy": 0.75, "acc5": 0.95}


def hook(folder: Path, *argv: str, **env: str) -> "subprocess.CompletedProcess[str]":
    clean = {"PATH": os.environ["PATH"]} | env
    return subprocess.run([str(HOOK), *argv], cwd=folder, env=clean, capture_output=True, text=True, check=False)


def test_the_hook_makes_a_pod_twice_over(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    for _ in range(2):
        done = hook(tmp_path, "-pod_id", "p-1", EDL_IMAGENET_PATH="images", EDL_CHECKPOINT_PATH="a b/checkpoints")
        assert (done.returncode, done.stderr) == (0, "")
    pod = tmp_path / "resnet50_pod" / "p-1"
    assert {p.name for p in pod.glob("*.py")} == {p.name for p in HOOK.parent.glob("*.py")}
    assert (pod / "ImageNet").resolve() == tmp_path / "images"
    assert (pod / "fleet_checkpoints").resolve() == tmp_path / "a b" / "checkpoints"
    assert not any(p.is_symlink() for p in (tmp_path / "images").iterdir())
    found = parse_options([], {}, pod)
    assert found.checkpoint == f"file://{tmp_path}/a b/checkpoints"


def test_the_hook_leaves_a_checkpoint_url_to_the_variable(tmp_path: Path) -> None:
    old = {"PADDLE_EDL_IMAGENET_PATH": str(tmp_path), "PADDLE_EDL_FLEET_CHECKPOINT_PATH": "hdfs://h:1/x"}
    assert hook(tmp_path, "-pod_id", "1", **old).returncode == 0
    assert not (tmp_path / "resnet50_pod" / "1" / "fleet_checkpoints").exists()


@pytest.mark.parametrize(
    ("argv", "env", "sentence"),
    [
        (["-pod_id", "1"], {"EDL_CHECKPOINT_PATH": "c"}, "set EDL_IMAGENET_PATH"),
        (["-pod_id", "1"], {"EDL_IMAGENET_PATH": "."}, "set EDL_CHECKPOINT_PATH"),
        (["-pod_id", "1"], {"EDL_CHECKPOINT_PATH": "c", "EDL_IMAGENET_PATH": "no"}, "no, which is not a folder"),
        (["-pod_id", "../1"], {}, "the pod id '../1' cannot name a directory"),
        (["-pod_id"], {}, "call it as: package.sh -pod_id ID"),
    ],
)
def test_the_hook_says_in_one_line_what_is_wrong(
    tmp_path: Path, argv: list[str], env: dict[str, str], sentence: str
) -> None:
    done = hook(tmp_path, *argv, **env)
    assert done.returncode == 2
    assert done.stderr.startswith("package.sh: ")
    assert done.stderr.count("\n") == 1
    assert sentence in done.stderr
    assert not list(tmp_path.iterdir())
