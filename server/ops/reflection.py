"""The gRPC reflection service: it sends the contract to tools that have no copy. Callers need no token.

The service has both names that tools use. The messages of `v1` and `v1alpha` are identical on the wire.
"""

from collections.abc import AsyncIterable, Iterable
from typing import cast

import grpc
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha.reflection import aio
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from server.ops.public_streams import PublicStreams
from server.rpc.call_context import Context

NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")

_MOST_STREAMS = 64
# The longest duration of a stream, in seconds. Tools ask all their questions at once; a tool that needs longer must
# open a new stream.
_SECONDS = 30.0

_Answers = AsyncIterable[ServerReflectionResponse]


class Reflection:
    """The reflection service. It shows only the given services and the files that they import.

    Args:
        services: the services to show.
    """

    def __init__(self, services: Iterable[ServiceDescriptor]) -> None:
        services = list(services)
        pool = DescriptorPool()
        for service in services:
            _add(service.file, pool)
        self._servicer = aio.ReflectionServicer([service.full_name for service in services], pool)
        self._streams = PublicStreams(most=_MOST_STREAMS, seconds=_SECONDS)

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Return the service under each of its names, for grpc to serve."""
        method = grpc.stream_stream_rpc_method_handler(
            self._answer_all,
            request_deserializer=ServerReflectionRequest.FromString,
            response_serializer=ServerReflectionResponse.SerializeToString,
        )
        return tuple(grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method}) for name in NAMES)

    def close(self) -> None:
        """End every stream and refuse new ones."""
        self._streams.close()

    async def _answer_all(self, requests: AsyncIterable[ServerReflectionRequest], context: Context) -> None:
        async with self._streams.room(context):
            # The library's type stub declares a coroutine, but the method is an asynchronous generator.
            answers = cast(_Answers, self._servicer.ServerReflectionInfo(requests, context))
            async for answer in answers:
                await context.write(answer)


def _add(file: FileDescriptor, pool: DescriptorPool) -> None:
    """Add a file to the pool after the files that it imports."""
    try:
        pool.FindFileByName(file.name)
    except KeyError:
        for imported in file.dependencies:
            _add(imported, pool)
        pool.AddSerializedFile(file.serialized_pb)
