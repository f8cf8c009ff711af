"""What a teacher answers: models from everywhere, normalised, in each precision; and models that cannot be served."""

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import teacher_models
import torch
from safetensors.torch import save
from teacher_thread import TeacherThread

from checkpoints import TrainStatus, save_checkpoint
from distill.errors import ConfigError, DistillError, ModelError
from distill.teacher.config import ServeConfig, parse_inputs, parse_normalisation
from distill.teacher.run import build
from distill.teacher_client import Array
from edl_collective.coord.clock import SystemClock

IMAGE = "image:uint8:3,8,8"
FLOATS = "image:fp32:3,8,8"
SMALL = "teacher_models:small"
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 8), np.uint8)
MEAN, STD = "0.485,0.456,0.406", "0.229,0.224,0.225"


def expected(pixels: Array = PIXELS, module: torch.nn.Module | None = None) -> Array:
    """Logits of the small model for normalised pixels, by the formula."""
    mean, std = (np.array(text.split(","), np.float64).reshape(1, 3, 1, 1) for text in (MEAN, STD))
    x = torch.from_numpy(((pixels / 255.0 - mean) / std).astype(np.float32))
    with torch.inference_mode():
        found: Array = (module or teacher_models.small()).eval()(x).numpy()
    return found


def ask(teacher: TeacherThread, array: Array, **options: Any) -> tuple[dict[str, Array], str | None]:
    with teacher.client() as client:
        outputs, head = client.infer(teacher.model, {"image": array}, **options)
    return outputs, head.model_hash


def served(model: str = SMALL, input: str = IMAGE, **options: Any) -> TeacherThread:
    normalisation = parse_normalisation(MEAN, STD, 255.0) if "uint8" in input else None
    return TeacherThread(model, input=input, normalisation=normalisation, max_batch=4, **options)


def test_pixels_are_normalised_by_the_teacher_and_floats_are_taken_as_normalised() -> None:
    with served(answer="fp32") as teacher:
        outputs, _ = ask(teacher, PIXELS)
        np.testing.assert_allclose(outputs["output"], expected(), atol=1e-5)
        mean, std = (np.array(text.split(","), np.float32).reshape(1, 3, 1, 1) for text in (MEAN, STD))
        outputs, _ = ask(teacher, ((PIXELS / np.float32(255.0)) - mean) / std)
        np.testing.assert_allclose(outputs["output"], expected(), atol=1e-5)
        with teacher.client() as client:
            parameters = client.metadata(teacher.model).parameters
    assert parameters["normalisation"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "scale": 255.0}
    assert parameters["classes"] == 10


def test_one_mean_serves_all_channels() -> None:
    normalisation = parse_normalisation("0.5", "0.25", 255.0)
    with TeacherThread(SMALL, normalisation=normalisation, answer="fp32") as teacher:
        outputs, _ = ask(teacher, PIXELS)
    x = torch.from_numpy(((PIXELS / 255.0 - 0.5) / 0.25).astype(np.float32))
    with torch.inference_mode():
        np.testing.assert_allclose(outputs["output"], teacher_models.small().eval()(x).numpy(), atol=1e-5)


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 0.05), ("fp16", 0.01), ("int8", 0.05)])
def test_precisions_answer_nearly_the_same(precision: str, tolerance: float) -> None:
    with served(precision=precision) as teacher:
        outputs, _ = ask(teacher, PIXELS)
    assert outputs["output"].dtype == np.float16
    np.testing.assert_allclose(outputs["output"], expected(), atol=tolerance)
    assert not np.array_equal(outputs["output"], expected().astype(np.float16))


def test_a_top_k_is_the_largest_values_with_their_places() -> None:
    with served(answer="fp32") as teacher:
        outputs, _ = ask(teacher, PIXELS, outputs=["output"], parameters={"output": {"top_k": 3}})
    values, indices = outputs["output"], outputs["output_indices"]
    assert values.shape == (5, 3)
    assert indices.dtype == np.int32
    np.testing.assert_array_equal(indices, np.argsort(-expected(), axis=1)[:, :3])
    np.testing.assert_allclose(values, -np.sort(-expected(), axis=1)[:, :3], atol=1e-5)


def test_outputs_may_have_names_and_be_integers() -> None:
    with TeacherThread("teacher_models:named") as teacher:
        outputs, _ = ask(teacher, PIXELS)
        assert sorted(outputs) == ["best", "logits"]
        np.testing.assert_array_equal(outputs["best"][:, 0], PIXELS.reshape(5, -1).argmax(1))
        outputs, _ = ask(teacher, PIXELS, outputs=["logits"])
        assert list(outputs) == ["logits"]
        assert outputs["logits"].shape == (5, 5)


def weights(seed: int = 3) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = teacher_models.small(seed=seed).state_dict()
    return found


def torch_file(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("w.pt", lambda: torch_file(weights())),
        ("w.pth", lambda: torch_file({"model": weights(), "epoch": 3})),
        ("w.ckpt", lambda: torch_file({"state_dict": {f"module.{k}": v for k, v in weights().items()}})),
        ("w.safetensors", lambda: save(weights())),
    ],
)
def test_weights_come_from_files(tmp_path: Path, name: str, data: Callable[[], bytes]) -> None:
    (tmp_path / name).write_bytes(data())
    with served(checkpoint=f"{tmp_path}/{name}", answer="fp32") as teacher:
        outputs, _ = ask(teacher, PIXELS)
    np.testing.assert_allclose(outputs["output"], expected(module=teacher_models.small(seed=3)), atol=1e-5)


def test_weights_come_from_a_checkpoint_folder(tmp_path: Path) -> None:
    save_checkpoint(f"file://{tmp_path}/ckpt", TrainStatus(), state={"net": weights()})
    with pytest.raises(ModelError, match=r"has the states \['net'\]: name one with --checkpoint-state"):
        served(checkpoint=f"file://{tmp_path}/ckpt")
    with served(checkpoint=f"file://{tmp_path}/ckpt", checkpoint_state="net", answer="fp32") as teacher:
        outputs, _ = ask(teacher, PIXELS)
    np.testing.assert_allclose(outputs["output"], expected(module=teacher_models.small(seed=3)), atol=1e-5)


def exported(folder: Path, *, training: bool = False, fixed: bool = False) -> str:
    module = teacher_models.small().train(training)
    shapes = None if fixed else ({0: torch.export.Dim("batch")},)
    program = torch.export.export(module, (torch.zeros(2, 3, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program, folder / "net.pt2")
    return f"{folder}/net.pt2"


def test_an_exported_program_says_what_it_takes(tmp_path: Path) -> None:
    file = exported(tmp_path)
    with TeacherThread(file, input="", answer="fp32") as teacher, teacher.client() as client:
        [spec] = client.metadata("net").inputs
        assert (spec.datatype, spec.shape) == ("FP32", (-1, 3, 8, 8))
        x = PIXELS.astype(np.float32)
        outputs, head = client.infer("net", {spec.name: x})
    with torch.inference_mode():
        wanted = teacher_models.small().eval()(torch.from_numpy(x)).numpy()
    np.testing.assert_allclose(outputs["output"], wanted, rtol=1e-4, atol=1e-4)
    with served(file, "input:uint8:3,8,8", answer="fp32") as teacher, teacher.client() as client:
        outputs, normalised = client.infer("net", {"input": PIXELS})
    np.testing.assert_allclose(outputs["output"], expected(), atol=1e-5)
    assert head.model_hash != normalised.model_hash


def test_torchscript_is_served(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):
        script = torch.jit.trace(  # type: ignore[no-untyped-call]
            teacher_models.small().eval(), torch.zeros(2, 3, 8, 8)
        )
        torch.jit.save(script, f"{tmp_path}/net.ts")
    with served(f"{tmp_path}/net.ts", answer="fp32") as teacher:
        outputs, _ = ask(teacher, PIXELS)
    np.testing.assert_allclose(outputs["output"], expected(), atol=1e-5)


def hash_of(model: str = SMALL, **options: Any) -> str:
    options = {"inputs": parse_inputs((IMAGE,)), "normalisation": parse_normalisation(MEAN, STD, 255.0)} | options
    return build(ServeConfig(model=model, max_batch=2, **options), SystemClock()).identity.model_hash


def test_the_hash_tells_apart_what_answers_differently_and_nothing_else() -> None:
    same = hash_of()
    assert same == hash_of(name="another name", batch_delay_ms=0.0)
    others = [
        hash_of(model_args={"seed": 1}),
        hash_of(normalisation=parse_normalisation("0.5", None, 255.0)),
        hash_of(normalisation=None, inputs=parse_inputs((FLOATS,))),
        hash_of(precision="bf16"),
        hash_of(answer="fp32"),
    ]
    assert len({same, *others}) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "nothing"}, "must be a .pt2 or .pt file, or module:function"),
        ({"model": "no_such_module:f"}, "does not give a model: ModuleNotFoundError"),
        ({"model": "teacher_models:none"}, "does not give a model: AttributeError"),
        ({"model": SMALL, "model_args": {"x": 1}}, "unexpected keyword"),
        ({"model": "teacher_models:number"}, "gave a int, not a torch.nn.Module"),
        ({"model": "teacher_models:stubborn"}, "differs between two runs on the same batch.*training mode"),
        ({"model": "teacher_models:summed"}, "its first size must be"),
        ({"model": SMALL, "classes": 7}, r"has the shape \[-1, 10\], and --classes says 7"),
        ({"model": SMALL, "outputs": ("a", "b")}, r"gave 1 tensors for the outputs \['a', 'b'\]"),
        ({"model": "teacher_models:named", "outputs": ("a",)}, "has no output 'a'"),
        ({"model": SMALL, "inputs": parse_inputs(("image:fp32:4,8,8",))}, "the model failed on inputs"),
        ({"model": SMALL, "inputs": parse_inputs(("image:uint8:3,8,8",))}, "without --mean and --std it gets uint8 as"),
        ({"model": "teacher_models:identity", "precision": "int8"}, "this has none"),
        ({"model": SMALL, "checkpoint": "/nowhere/w.pt"}, "cannot be read"),
        ({"model": SMALL, "checkpoint": "/nowhere"}, "there is no checkpoint in /nowhere"),
        ({"model": "/nowhere/m.pt2"}, "cannot be read"),
        ({"model": "/nowhere/m.pt2", "checkpoint": "w.pt"}, "--checkpoint and --model-args go with module:function"),
        ({"model": SMALL, "inputs": ()}, "--input is missing"),
        ({"model": SMALL, "gpu_ids": (99,)}, "--gpu_ids names GPU 99"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_sentence(options: dict[str, Any], words: str) -> None:
    options = {"inputs": parse_inputs((FLOATS,))} | options
    with pytest.raises(DistillError, match=words) as raised:
        build(ServeConfig(**options), SystemClock())
    assert isinstance(raised.value, ModelError | ConfigError)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["m.pt2", "m.pt", "m.ts"])
def test_files_that_are_no_models_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"this is no model")
    with pytest.raises(ModelError, match=f"{name} is not"):
        build(ServeConfig(model=f"{tmp_path}/{name}", inputs=parse_inputs((FLOATS,))), SystemClock())


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_files_that_are_no_weights_are_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"these are no weights")
    with pytest.raises(ModelError, match=f"{name} is not a file of weights"):
        build(ServeConfig(model=SMALL, checkpoint=f"{tmp_path}/{name}", inputs=parse_inputs((FLOATS,))), SystemClock())


def test_weights_of_another_model_do_not_fit(tmp_path: Path) -> None:
    (tmp_path / "w.pt").write_bytes(torch_file(teacher_models.small(classes=11).state_dict()))
    with pytest.raises(ModelError, match=r"do not fit the model: RuntimeError: .*size mismatch"):
        build(ServeConfig(model=SMALL, checkpoint=f"{tmp_path}/w.pt", inputs=parse_inputs((FLOATS,))), SystemClock())


def test_a_program_that_trains_or_takes_one_size_only_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="exported in training mode"):
        build(ServeConfig(model=exported(tmp_path, training=True)), SystemClock())
    with pytest.raises(ModelError, match="for batches of exactly 2"):
        build(ServeConfig(model=exported(tmp_path, fixed=True)), SystemClock())
