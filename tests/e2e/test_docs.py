"""What the documentation shows, run as printed, on a cluster that all pages share (doc_sandbox)."""

import re
from collections.abc import Callable, Iterator

import pytest
from doc_blocks import Block, blocks_of, pages
from doc_sandbox import Sandbox

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

#: pages whose blocks belong together in a way of their own, below
_OWN = {"docs/from-pytorch.md", "docs/from-horovod.md"}


def to_run(page: str) -> list[Block]:
    return [block for block in blocks_of(page) if block.how == "run"]


def patched(script: str, diff: str) -> str:
    """`script` after a diff whose lines of context and removal are all of the lines it touches."""
    lines = diff.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    assert script.count(before) == 1, "the diff does not fit its script"
    return script.replace(before, after)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    sandbox = Sandbox(tmp_path_factory.mktemp("docs"))
    try:
        yield sandbox.start()
    finally:
        sandbox.close()


@pytest.fixture
def sandbox(cluster: Sandbox, request: pytest.FixtureRequest) -> Iterator[Sandbox]:
    cluster.enter(re.sub(r"\W+", "-", request.node.name))
    yield cluster
    cluster.leave()


def fewer_epochs(text: str) -> str:
    return text.replace("90", "2")


def checkpoints_to_look_at(sandbox: Sandbox) -> None:
    """Eight checkpoints of the model of doc_names, where the commands look for them."""
    program = """
from doc_names import *
from checkpoints import CheckpointManager, TrainStatus
for folder in ("hdfs/run", "data/run"):
    with CheckpointManager(folder, keep=None) as manager:
        for epoch in range(8):
            manager.save(TrainStatus(epoch_no=epoch, user={"accuracy": evaluate()}), model=model)
"""
    (sandbox.folder / "make.py").write_text(program)
    sandbox.shell("python make.py")


#: page -> what is there before its first command
BEFORE: dict[str, Callable[[Sandbox], None]] = {"docs/checkpoints-cli.md": checkpoints_to_look_at}
#: page -> what is changed, so that it takes less time, or does not end while a slow machine types
CHANGED: dict[str, Callable[[str], str]] = {
    "README.md": fewer_epochs,
    "docs/checkpoints.md": fewer_epochs,
    "docs/start.md": lambda text: text.replace("EPOCHS = 40", "EPOCHS = 4000"),
}


@pytest.mark.parametrize("page", [page for page in pages() if to_run(page) and page not in _OWN])
def test_page(page: str, sandbox: Sandbox) -> None:
    """Every block that is marked, in order."""
    if page in BEFORE:
        BEFORE[page](sandbox)
    changed = CHANGED.get(page, str)
    for block in to_run(page):
        sandbox.run(Block(block.page, block.line, block.language, changed(block.text), block.how, block.note))


def accuracies(said: str) -> list[float]:
    return [float(number) for number in re.findall(r"epoch 4: accuracy ([\d.]+)", said)]


def test_from_pytorch(sandbox: Sandbox) -> None:
    plain, diff, by_hand, as_job = to_run("docs/from-pytorch.md")
    added = [line for line in diff.text.splitlines() if line.startswith("+") and line != "+"]
    assert len(added) <= 12  # "about ten"
    sandbox.save("train.py", plain.text)
    (reference,) = accuracies(sandbox.shell("python train.py"))

    sandbox.save("train.py", patched(plain.text, diff.text))
    alone, *both = accuracies(sandbox.run(by_hand))
    assert len(both) == 2
    assert min(reference, alone, *both) > 0.85
    assert both == pytest.approx([alone, alone], abs=0.02)  # the same global batches in the same order

    assert "digits" in sandbox.run(as_job)
    sandbox.cluster.wait_for_phase("digits", "succeeded", 180)
    assert [event["fields"]["epoch"] for event in sandbox.cluster.events("digits", "epoch")] == list(range(5))


def test_from_horovod(sandbox: Sandbox) -> None:
    plain, diff, own, external = to_run("docs/from-horovod.md")
    sandbox.save("train.py", plain.text)
    assert "rank 0: 50 batches" in sandbox.run(external)
    assert sandbox.cluster.job("ext")["phase"] == "stopped"

    sandbox.save("train.py", patched(plain.text, diff.text))
    sandbox.run(own)
    sandbox.cluster.wait_for_phase("own", "succeeded", 180)
    said = "".join(path.read_text() for path in sandbox.base.glob("logs/own/*.log"))
    assert "rank 0: 50 batches" in said
