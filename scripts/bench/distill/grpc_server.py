"""A gRPC server of the Open Inference Protocol whose answers lie ready: `python -m bench.distill.grpc_server`.

It prints its port and serves until its standard input ends, so that it never outlives who started it. The protocol is
that which ships with tritonclient; all that it costs is gRPC's.
"""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

ROWS, CLASSES = 32, 1000
#: gRPC refuses more than 4 MB unless it is told otherwise, which a batch of images is
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Zero(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc]  # has no types
    """Answers every inference with zeros, FP16 [32, 1000]."""

    def __init__(self) -> None:
        answer = service_pb2.ModelInferResponse(model_name="zero", model_version="1")
        answer.outputs.add(name="output", datatype="FP16", shape=[ROWS, CLASSES])
        answer.raw_output_contents.append(bytes(ROWS * CLASSES * 2))
        self._answer = answer

    def ModelInfer(self, request: Any, context: Any) -> Any:
        """Check that all pixels came."""
        if len(request.raw_input_contents[0]) != ROWS * 3 * 224 * 224:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "send 32 images of 224 x 224")
        return self._answer


def main() -> None:
    """Serve until standard input ends."""
    server = grpc.server(ThreadPoolExecutor(4), options=OPTIONS)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(Zero(), server)
    print(server.add_insecure_port("127.0.0.1:0"), flush=True)
    server.start()
    sys.stdin.read()
    server.stop(0).wait()


if __name__ == "__main__":
    main()
