"""What a served model takes and gives, and whether a request fits it. [pure]

Inputs are declared by the user ("image:uint8:3,224,224", without the batch) or by an exported program; outputs are
found when the model first runs. Sizes are exact: a teacher that reshapes what it was sent would answer something else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from distill.errors import ConfigError, ProtocolError
from distill.oip import DATATYPES, TensorHead, TensorSpec, WantedOutput, datatype_of
from distill.records import Normalisation

#: what may be sent for a declared float input: the server casts it
FLOATS = frozenset({"FP16", "FP32", "FP64"})
#: datatypes that torch computes with
SERVED = frozenset({"BOOL", "UINT8", "INT8", "INT16", "INT32", "INT64", *FLOATS})
MOST_DIMENSIONS = 8
#: parameters of a wanted output that would change its values, and that this server does not have
_UNSUPPORTED = frozenset({"classification", "shared_memory_region"})


@dataclass(frozen=True, slots=True)
class InputSpec:
    """One input; `shape` is that of a sample, -1 for any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]

    @property
    def tensor_spec(self) -> TensorSpec:
        return TensorSpec(self.name, self.datatype, (-1, *self.shape))


@dataclass(frozen=True, slots=True)
class Serving:
    """How a model is served: all that its answers depend on besides the model."""

    inputs: tuple[InputSpec, ...]
    normalisation: Normalisation | None
    precision: str
    answer: str
    max_batch: int
    #: names of the outputs, in the model's order; empty: those of its mapping, else output, output_1, ...
    names: tuple[str, ...] = ()


def parse_input(text: str) -> InputSpec:
    """An input from "name:dtype:sizes", the sizes being those of one sample. Raises ConfigError."""
    parts = text.split(":")
    if len(parts) != 3 or not parts[0]:
        raise ConfigError(f"--input {text!r} must look like image:uint8:3,224,224 (name, dtype, shape of one sample)")
    name, dtype, sizes = parts
    datatype = dtype.upper() if dtype.upper() in DATATYPES else None
    try:
        datatype = datatype or datatype_of(dtype)
        shape = tuple(int(size) for size in sizes.split(",") if size)
    except (ProtocolError, ValueError) as error:
        raise ConfigError(f"--input {text!r}: {error}") from error
    if datatype not in SERVED:
        raise ConfigError(f"--input {text!r}: models take no {datatype}, only {', '.join(sorted(SERVED))}")
    if any(size == 0 or size < -1 for size in shape) or len(shape) >= MOST_DIMENSIONS:
        raise ConfigError(f"--input {text!r}: sizes must be positive, or -1 for any, and fewer than {MOST_DIMENSIONS}")
    return InputSpec(name, datatype, shape)


def check_normalisation(normalisation: Normalisation, inputs: Sequence[InputSpec]) -> None:
    """Raises ConfigError unless mean and std fit the channels (the first size) of every uint8 input."""
    pixels = [spec for spec in inputs if spec.datatype == "UINT8"]
    if not pixels:
        raise ConfigError("--mean and --std normalise uint8 inputs, and no --input is uint8")
    for spec in pixels:
        for option, values in (("--mean", normalisation.mean), ("--std", normalisation.std)):
            if len(values) != 1 and (not spec.shape or len(values) != spec.shape[0]):
                raise ConfigError(
                    f"{option} has {len(values)} values for input {spec.name!r} of shape {list(spec.shape)}: "
                    "give one, or one per channel (the first size)"
                )


def match_inputs(
    given: Sequence[TensorHead], specs: Sequence[InputSpec], *, normalised: bool
) -> tuple[tuple[int, ...], int]:
    """Which of the request's tensors is which input, and the samples of the batch. Raises ProtocolError.

    `normalised`: uint8 inputs are normalised here, so floats may be sent for them as well and are taken as normalised.
    """
    places = {tensor.name: index for index, tensor in enumerate(given)}
    if len(places) < len(given):
        raise ProtocolError("the request names an input twice")
    unknown = sorted(places.keys() - {spec.name for spec in specs})
    missing = [spec.name for spec in specs if spec.name not in places]
    if unknown or missing:
        raise ProtocolError(
            f"the model takes the inputs {[spec.name for spec in specs]}: "
            + "; ".join(
                [*(f"{name!r} is none of them" for name in unknown), *(f"{name!r} is missing" for name in missing)]
            )
        )
    order = tuple(places[spec.name] for spec in specs)
    for spec, place in zip(specs, order, strict=True):
        _check_input(given[place], spec, normalised)
    rows = {given[place].shape[0] for place in order}
    if len(rows) > 1:
        raise ProtocolError(f"the inputs have different numbers of samples: {sorted(rows)}")
    return order, rows.pop()


def _check_input(tensor: TensorHead, spec: InputSpec, normalised: bool) -> None:
    fits = tensor.datatype == spec.datatype
    floats = spec.datatype in FLOATS or (normalised and spec.datatype == "UINT8")
    if not fits and not (floats and tensor.datatype in FLOATS):
        raise ProtocolError(f"input {spec.name!r} is {spec.datatype}, not {tensor.datatype}")
    shape = tensor.shape
    same = len(shape) == len(spec.shape) + 1 and all(
        want in (-1, got) for want, got in zip(spec.shape, shape[1:], strict=True)
    )
    if not same:
        raise ProtocolError(f"input {spec.name!r} has the shape {[-1, *spec.shape]}, not {list(shape)}")
    if shape[0] == 0 or 0 in shape:
        raise ProtocolError(f"input {spec.name!r} is empty: {list(shape)}; send at least one sample")


@dataclass(frozen=True, slots=True)
class Wanted:
    """One output that a request asks for: `index` in the model's order."""

    index: int
    name: str
    binary: bool
    top_k: int | None = None


def match_outputs(
    asked: Sequence[WantedOutput], outputs: Sequence[TensorSpec], parameters: Mapping[str, object]
) -> tuple[Wanted, ...]:
    """What to answer; all outputs if none is named. Raises ProtocolError."""
    everything = bool(parameters.get("binary_data_output", False))
    if not asked:
        return tuple(Wanted(index, spec.name, everything) for index, spec in enumerate(outputs))
    names = [spec.name for spec in outputs]
    wanted = tuple(_wanted(item, names, outputs, everything) for item in asked)
    if len({item.name for item in wanted}) < len(wanted):
        raise ProtocolError("the request asks for an output twice")
    return wanted


def _wanted(item: WantedOutput, names: Sequence[str], outputs: Sequence[TensorSpec], everything: bool) -> Wanted:
    if item.name not in names:
        raise ProtocolError(f"the model has no output {item.name!r}, only {list(names)}")
    unsupported = sorted(_UNSUPPORTED & item.parameters.keys())
    if unsupported:
        raise ProtocolError(f"output {item.name!r}: this server does not know the parameter {unsupported[0]}")
    index = names.index(item.name)
    binary = bool(item.parameters.get("binary_data", everything))
    top_k = item.parameters.get("top_k")
    if top_k is not None:
        size = outputs[index].shape[-1]
        if not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1 or (size > 0 and top_k > size):
            raise ProtocolError(f"top_k of output {item.name!r} is {top_k!r}: it must be from 1 to {size}")
        if len(outputs[index].shape) < 2:
            raise ProtocolError(f"top_k needs an output of more than one size, which {item.name!r} is not")
    return Wanted(index, item.name, binary, top_k)
